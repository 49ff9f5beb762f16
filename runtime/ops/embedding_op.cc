#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/embedding/embedding.h"
#include "ops/embedding_node.h"
#include "ops/library.h"

namespace qc::ops {
namespace {

constexpr std::int64_t kValuesPerTask = 1 << 15;

class EmbeddingKernel {
 public:
  EmbeddingKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const std::int64_t k = node_.matrix().k;
    const EmbeddingCall call = node_.read(context);
    const std::vector<std::int64_t> columns = columns_of(call);
    const std::int64_t per_task = std::max<std::int64_t>(1, kValuesPerTask / k);
    auto task = [&](std::size_t index) {
      const std::int64_t first = static_cast<std::int64_t>(index) * per_task;
      const std::int64_t end = std::min(call.count, first + per_task);
      for (std::int64_t i = first; i < end; ++i) {
        kernels::embedding_f32(node_.form(), call.weights, columns[static_cast<std::size_t>(i)],
                               call.out + i * k);
      }
    };
    parallel_for(api(), context, static_cast<std::size_t>(kernels::ceil_div(call.count, per_task)),
                 task);
  }

 private:
  // The ids as columns 0 .. n - 1 of the matrix. OpError for one that is out of range.
  std::vector<std::int64_t> columns_of(const EmbeddingCall& call) const {
    const std::int64_t n = node_.matrix().n;
    std::vector<std::int64_t> columns(static_cast<std::size_t>(call.count));
    for (std::size_t i = 0; i < columns.size(); ++i) {
      const std::int64_t id = call.wide_ids ? static_cast<const std::int64_t*>(call.ids)[i]
                                            : static_cast<const std::int32_t*>(call.ids)[i];
      if (id < -n || id >= n) {
        throw OpError(node_.label() + ": id " + std::to_string(id) +
                      " is out of range for N=" + std::to_string(n));
      }
      columns[i] = id < 0 ? id + n : id;
    }
    return columns;
  }

  EmbeddingNode node_;
};

}  // namespace

void add_embedding_ops(std::deque<Op>& ops) {
  add_embedding_family<EmbeddingKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
