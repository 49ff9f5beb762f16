// What the kernels take and give: types of elements, and where columns of a result go.
#ifndef QC_CUDA_ELEMENTS_H_
#define QC_CUDA_ELEMENTS_H_

#include <cstdint>

namespace qc::cuda {

enum class Element : std::int32_t { kFloat32, kFloat16, kBfloat16 };

inline constexpr int kOutputs = 3;

// Columns [begin, end) of the result, a tensor of its own [rows, end - begin].
struct Output {
  void* data;  // null: nobody reads it
  std::int64_t begin, end;
};

}  // namespace qc::cuda

#endif  // QC_CUDA_ELEMENTS_H_
