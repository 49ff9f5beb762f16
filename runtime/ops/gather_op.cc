#include <cstdint>

#include "kernels/gather/gather.h"
#include "ops/gather_node.h"
#include "ops/library.h"

namespace qc::ops {
namespace {

class GatherKernel {
 public:
  GatherKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op) : node_(api, info, op) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const GatherCall call = node_.read(context);
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
    look_up(api(), context, columns_of(call, matrix.n, node_.label()), matrix.k, call.out,
            [&](std::int64_t column, float* row) { kernels::gather_f32(table, column, row); });
  }

 private:
  GatherNode node_;
};

}  // namespace

void add_gather_ops(std::deque<Op>& ops) {
  add_gather_family<GatherKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
