#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/library.h"
#include "ops/matmul_compute.h"
#include "ops/matmul_node.h"

namespace qc::ops {
namespace {

class MatMulKernel {
 public:
  MatMulKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op), kernels_(*op.kernels) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const MatMulCall call = node_.read(context);
    if (call.rows == 0) return;
    const MatrixAttributes& matrix = node_.matrix();
    const float* bias = call.bias;
    std::vector<float> spread_bias;
    if (call.one_bias) {
      // One value for all columns: 0 by convention, else spread here. It may lie unaligned.
      float value;
      std::memcpy(&value, call.bias, sizeof value);
      if (value != 0.0f) spread_bias.assign(static_cast<std::size_t>(matrix.n), value);
      bias = spread_bias.empty() ? nullptr : spread_bias.data();
    }
    MatMulJob job{};
    job.kernels = &kernels_;
    job.bits = node_.form().bits;
    job.element_type = node_.element_type();
    job.x = call.x;
    job.rows = call.rows;
    job.activation_block = node_.activation_block();
    job.static_scale = call.static_scale;
    job.weights = {call.packed.codes,
                   call.packed.scales,
                   call.packed.one_zero_point ? nullptr : call.packed.zero_points,
                   call.packed.zero_points[0],
                   bias,
                   matrix.k,
                   matrix.n,
                   matrix.group_size};
    job.outputs = call.outputs;
    run(api(), context, job);
  }

 private:
  MatMulNode node_;
  const kernels::KernelTable& kernels_;
};

}  // namespace

void add_matmul_ops(std::deque<Op>& ops) {
  add_matmul_family<MatMulKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
