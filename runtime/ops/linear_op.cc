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
    const MatrixAttributes& matrix = node_.matrix();
    LinearCall call = node_.read(context);
    if (call.rows == 0) return;
    const BiasValues bias(call, matrix.n);
    call.weights.bias = bias.get();

    TiledProduct product{};
    product.kernels = &kernels_;
    product.element_type = node_.element_type();
    product.x = call.x;
    product.rows = call.rows;
    product.k = matrix.k;
    product.n = matrix.n;
    product.group_size = matrix.group_size;
    product.activation_block = matrix.k;
    product.static_scale = call.static_scale;
    product.start_factor = 1;
    product.outputs = call.outputs;
    product.multiply = [&](const QuantizedChunk& q, const kernels::Tile& tile) {
      kernels_.linear[node_.bits()]({q.codes, q.stride, q.scales, q.starts}, call.weights, tile);
    };
    run(api(), context, product);
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
