#include <deque>

#include "ops/library.h"
#include "ops/matmul_node.h"
#include "ops/tiled_product.h"

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
    const BiasValues bias(call, matrix.n);
    const PackedInputs::Pointers& packed = call.packed;
    const kernels::Weights weights{packed.codes,
                                   packed.scales,
                                   packed.one_zero_point ? nullptr : packed.zero_points,
                                   packed.zero_points[0],
                                   bias.get(),
                                   matrix.k,
                                   matrix.n,
                                   matrix.group_size};
    const auto matmul = kernels_.matmul[node_.form().bits];

    TiledProduct product{};
    product.kernels = &kernels_;
    product.element_type = node_.element_type();
    product.x = call.x;
    product.rows = call.rows;
    product.k = matrix.k;
    product.n = matrix.n;
    product.group_size = matrix.group_size;
    product.activation_block = node_.activation_block();
    product.static_scale = call.static_scale;
    product.start_factor = packed.one_zero_point ? -weights.zero_point : -1;
    product.outputs = call.outputs;
    product.multiply = [&](const QuantizedChunk& q, const kernels::Tile& tile) {
      matmul({q.codes, q.stride, q.scales, q.scale_count, q.starts}, weights, tile);
    };
    run(api(), context, product);
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
