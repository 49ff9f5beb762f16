#include "ops/matmul_op.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/matmul_compute.h"
#include "ops/matmul_node.h"

namespace qc::ops {
namespace {

const kernels::KernelTable* g_kernels = nullptr;

template <int kForm>
class MatMulKernel {
 public:
  MatMulKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, kMatMulForms[kForm], op.input_types[MatMulNode::kX]) {}

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
    job.kernels = g_kernels;
    job.bits = kMatMulForms[kForm].bits;
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
};

}  // namespace

void add_matmul_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels) {
  g_kernels = &kernels;
  add_matmul_family<MatMulKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
