#include "kernels/embedding/embedding.h"
#include "ops/embedding_node.h"
#include "ops/library.h"

namespace qc::ops {
namespace {

class EmbeddingKernel {
 public:
  EmbeddingKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const MatrixAttributes& matrix = node_.matrix();
    const EmbeddingCall call = node_.read(context);
    look_up(api(), context, columns_of(call, matrix.n, node_.label()), matrix.k, call.out,
            [&](std::int64_t column, float* row) {
              kernels::embedding_f32(node_.bits(), call.weights, column, row);
            });
  }

 private:
  EmbeddingNode node_;
};

}  // namespace

void add_embedding_ops(std::deque<Op>& ops) {
  add_embedding_family<EmbeddingKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
