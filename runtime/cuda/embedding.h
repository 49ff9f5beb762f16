// Columns of a packed matrix, dequantized, on NVIDIA GPUs: kernels/embedding/embedding.h for many
// at once.
#ifndef QC_CUDA_EMBEDDING_H_
#define QC_CUDA_EMBEDDING_H_

#include <cstdint>

#include "kernels/planes.h"

namespace qc::cuda {

// Everything pointed to is on the device; see docs/ops.md for the shapes.
struct EmbeddingLookUp {
  const void* ids;  // [count]
  std::int64_t count, k, n;
  std::int64_t group_size;  // k for 8 bits
  const std::uint8_t* codes;
  const std::uint8_t* groups;  // null for 8 bits
  const float* scales;
  float* out;              // [count, k]; NaN for an id outside -n .. n-1
  std::int32_t wide_ids;   // int64 rather than int32
  std::int32_t form;       // of the weights, see kernels/planes.h
  kernels::Levels levels;  // of the forms that have them
};

// Enqueues the look-up on a stream (a cudaStream_t). Null, or what CUDA says went wrong, or which
// pointer is not aligned.
const char* embedding(const EmbeddingLookUp& look_up, void* stream);

}  // namespace qc::cuda

#endif  // QC_CUDA_EMBEDDING_H_
