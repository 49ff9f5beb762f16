// Columns of a packed matrix, dequantized, on NVIDIA GPUs: kernels/gather/gather.h for many at
// once.
#ifndef QC_CUDA_GATHER_H_
#define QC_CUDA_GATHER_H_

#include <cstdint>

namespace qc::cuda {

// Everything pointed to is on the device; see docs/ops.md for the shapes.
struct LookUp {
  const void* ids;  // [count]
  std::int64_t count, k, n, group_size;
  const std::uint8_t* codes;
  const std::uint16_t* scales;  // float16
  const std::uint8_t* zero_points;
  float* out;                   // [count, k]; NaN for an id outside -n .. n-1
  std::int32_t wide_ids;        // int64 rather than int32
  std::int32_t bits;            // of the weights: a width of the layout
  std::int32_t one_zero_point;  // zero_points holds one value for all weights
};

// Enqueues the look-up on a stream (a cudaStream_t). Null, or what CUDA says went wrong, or which
// pointer is not aligned.
const char* gather(const LookUp& look_up, void* stream);

}  // namespace qc::cuda

#endif  // QC_CUDA_GATHER_H_
