#include "ops/gather_op.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/gather/gather.h"
#include "ops/packed_inputs.h"

namespace qc::ops {
namespace {

template <int kBits>
class GatherKernel {
 public:
  GatherKernel(const OrtApi* api, const OrtKernelInfo* info, const Op&)
      : GatherKernel(api, Node(api, info, kGatherName<kBits>)) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const PackedInputs::Pointers packed = packed_.read(context);
    const OrtValue* ids = input_of(api_, context, 0);
    const TensorInfo ids_info = info_of(api_, ids);
    std::int64_t count = 1;
    for (const std::int64_t dim : ids_info.shape) count *= dim;
    const std::vector<std::int64_t> columns = columns_of(ids, ids_info.type, count);

    Shape out_shape = ids_info.shape;
    out_shape.push_back(matrix_.k);
    OrtValue* output = output_of(api_, context, 0, out_shape);
    if (count == 0) return;
    auto* out = static_cast<float*>(data_of(api_, output));

    const kernels::PackedTable table{kBits,
                                     packed.codes,
                                     packed.scales,
                                     packed.one_zero_point ? nullptr : packed.zero_points,
                                     packed.zero_points[0],
                                     matrix_.k,
                                     matrix_.n,
                                     matrix_.group_size};
    constexpr std::int64_t kValuesPerTask = 1 << 15;
    const std::int64_t per_task = std::max<std::int64_t>(1, kValuesPerTask / matrix_.k);
    auto task = [&](std::size_t index) {
      const std::int64_t first = static_cast<std::int64_t>(index) * per_task;
      const std::int64_t end = std::min(count, first + per_task);
      for (std::int64_t i = first; i < end; ++i) {
        kernels::gather_f32(table, columns[static_cast<std::size_t>(i)], out + i * matrix_.k);
      }
    };
    parallel_for(api_, context, static_cast<std::size_t>((count + per_task - 1) / per_task), task);
  }

 private:
  GatherKernel(const OrtApi* api, const Node& node)
      : api_(api),
        label_(node.label()),
        matrix_(MatrixAttributes::read(node)),
        packed_(api, node, matrix_, kBits, 1) {}

  // The ids as columns 0 .. n - 1; refuses any that is out of range.
  std::vector<std::int64_t> columns_of(const OrtValue* ids, int type, std::int64_t count) const {
    std::vector<std::int64_t> columns(static_cast<std::size_t>(count));
    if (count == 0) return columns;
    const void* data = data_of(api_, ids);
    for (std::size_t i = 0; i < columns.size(); ++i) {
      const std::int64_t id = type == abi::kInt64 ? static_cast<const std::int64_t*>(data)[i]
                                                  : static_cast<const std::int32_t*>(data)[i];
      if (id < -matrix_.n || id >= matrix_.n) {
        throw OpError(label_ + ": id " + std::to_string(id) +
                      " is out of range for N=" + std::to_string(matrix_.n));
      }
      columns[i] = id < 0 ? id + matrix_.n : id;
    }
    return columns;
  }

  const OrtApi* api_;
  std::string label_;
  MatrixAttributes matrix_;
  PackedInputs packed_;
};

}  // namespace

void add_gather_ops(std::deque<Op>& ops) {
  add_gather_family<GatherKernel>(ops, [](Op&) {});
}

}  // namespace qc::ops
