#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/gather/gather.h"
#include "ops/gather_node.h"
#include "ops/library.h"

namespace qc::ops {
namespace {

// The ids as columns 0 .. n - 1; refuses any that is out of range.
std::vector<std::int64_t> columns_of(const GatherCall& call, const GatherNode& node) {
  const std::int64_t n = node.matrix().n;
  std::vector<std::int64_t> columns(static_cast<std::size_t>(call.count));
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const std::int64_t id = call.wide_ids ? static_cast<const std::int64_t*>(call.ids)[i]
                                          : static_cast<const std::int32_t*>(call.ids)[i];
    if (id < -n || id >= n) {
      throw OpError(node.label() + ": id " + std::to_string(id) +
                    " is out of range for N=" + std::to_string(n));
    }
    columns[i] = id < 0 ? id + n : id;
  }
  return columns;
}

class GatherKernel {
 public:
  GatherKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op) : node_(api, info, op) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const GatherCall call = node_.read(context);
    const std::vector<std::int64_t> columns = columns_of(call, node_);
    const MatrixAttributes& matrix = node_.matrix();
    const PackedInputs::Pointers& packed = call.packed;
    const kernels::PackedTable table{node_.bits(),
                                     packed.codes,
                                     packed.scales,
                                     packed.one_zero_point ? nullptr : packed.zero_points,
                                     packed.zero_points[0],
                                     matrix.k,
                                     matrix.n,
                                     matrix.group_size};
    constexpr std::int64_t kValuesPerTask = 1 << 15;
    const std::int64_t per_task = std::max<std::int64_t>(1, kValuesPerTask / matrix.k);
    auto task = [&](std::size_t index) {
      const std::int64_t first = static_cast<std::int64_t>(index) * per_task;
      const std::int64_t end = std::min(call.count, first + per_task);
      for (std::int64_t i = first; i < end; ++i) {
        kernels::gather_f32(table, columns[static_cast<std::size_t>(i)], call.out + i * matrix.k);
      }
    };
    parallel_for(api(), context, static_cast<std::size_t>(kernels::ceil_div(call.count, per_task)),
                 task);
  }

 private:
  GatherNode node_;
};

}  // namespace

void add_gather_ops(std::deque<Op>& ops) {
  add_gather_family<GatherKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
