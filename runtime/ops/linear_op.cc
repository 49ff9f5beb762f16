#include "kernels/dispatch/dispatch.h"
#include "ops/library.h"
#include "ops/linear_node.h"
#include "ops/tiled_product.h"

namespace qc::ops {
namespace {

class LinearKernel {
 public:
  LinearKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op), kernels_(*op.kernels) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    LinearCall call = node_.read(context);
    if (call.rows == 0) return;
    const BiasValues bias(call, node_.matrix().n);
    call.weights.bias = bias.get();
    run(api(), context,
        {kernels_, node_.element_type(), call.x, call.rows, call.static_scale, node_.form(),
         call.weights, call.outputs});
  }

 private:
  LinearNode node_;
  const kernels::KernelTable& kernels_;
};

}  // namespace

void add_linear_ops(std::deque<Op>& ops) {
  add_linear_family<LinearKernel>(ops, [](Op&, const LinearForm&) {});
}

}  // namespace qc::ops
