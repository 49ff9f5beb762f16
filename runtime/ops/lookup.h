// Rows looked up in a table by ids of either type.
#ifndef QC_OPS_LOOKUP_H_
#define QC_OPS_LOOKUP_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/op.h"

namespace qc::ops {

// One run: ids [count], and where their rows [count, k] go.
struct LookUpCall {
  const void* ids;
  bool wide;  // int64 rather than int32
  std::int64_t count;
  float* out;
};

// Reads the first input, and makes the output of rows of `k` values.
LookUpCall read_look_up(const OrtApi* api, OrtKernelContext* context, std::int64_t k);

// The ids as columns 0 .. n - 1 of the packed matrix. OpError for one that is out of range.
std::vector<std::int64_t> columns_of(const LookUpCall& call, std::int64_t n,
                                     const std::string& label);

// body(column, row of k values) for each of the columns, on the session's threads.
template <typename Body>
void look_up(const OrtApi* api, OrtKernelContext* context, const std::vector<std::int64_t>& columns,
             std::int64_t k, float* out, Body body) {
  constexpr std::int64_t kValuesPerTask = 1 << 15;
  const auto count = static_cast<std::int64_t>(columns.size());
  const std::int64_t per_task = std::max<std::int64_t>(1, kValuesPerTask / k);
  auto task = [&](std::size_t index) {
    const std::int64_t first = static_cast<std::int64_t>(index) * per_task;
    const std::int64_t end = std::min(count, first + per_task);
    for (std::int64_t i = first; i < end; ++i) {
      body(columns[static_cast<std::size_t>(i)], out + i * k);
    }
  };
  parallel_for(api, context, static_cast<std::size_t>((count + per_task - 1) / per_task), task);
}

}  // namespace qc::ops

#endif  // QC_OPS_LOOKUP_H_
