#include "ops/lookup.h"

namespace qc::ops {

LookUpCall read_look_up(const OrtApi* api, OrtKernelContext* context, std::int64_t k) {
  const OrtValue* ids = input_of(api, context, 0);
  TensorInfo info = info_of(api, ids);
  LookUpCall call{data_of(api, ids), info.type == abi::kInt64, 1, nullptr};
  for (const std::int64_t dim : info.shape) call.count *= dim;
  info.shape.push_back(k);
  call.out = static_cast<float*>(data_of(api, output_of(api, context, 0, info.shape)));
  return call;
}

std::vector<std::int64_t> columns_of(const LookUpCall& call, std::int64_t n,
                                     const std::string& label) {
  std::vector<std::int64_t> columns(static_cast<std::size_t>(call.count));
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const std::int64_t id = call.wide ? static_cast<const std::int64_t*>(call.ids)[i]
                                      : static_cast<const std::int32_t*>(call.ids)[i];
    if (id < -n || id >= n) {
      throw OpError(label + ": id " + std::to_string(id) +
                    " is out of range for N=" + std::to_string(n));
    }
    columns[i] = id < 0 ? id + n : id;
  }
  return columns;
}

}  // namespace qc::ops
