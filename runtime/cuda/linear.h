// The integer matrix products on NVIDIA GPUs: the formula of kernels/linear/linear.h on device
// memory, and its bits, for any number of rows.
//
// Rows of X are quantized into scratch memory, then multiplied by packed weights.
#ifndef QC_CUDA_LINEAR_H_
#define QC_CUDA_LINEAR_H_

#include <cstddef>
#include <cstdint>

#include "cuda/elements.h"
#include "kernels/planes.h"

namespace qc::cuda {

// Everything pointed to is on the device; see docs/ops.md for the shapes.
struct LinearProduct {
  const void* x;  // [rows, k]
  std::int64_t rows, k, n;
  std::int64_t group_size;  // k for 8 bits
  const std::uint8_t* codes;
  const std::uint8_t* groups;  // null for 8 bits
  const float* scales;
  const float* bias;
  Output outputs[kOutputs];
  Element element;         // of x and the outputs
  float static_scale;      // 0: computed
  std::int32_t form;       // of the weights, see kernels/planes.h
  std::int32_t one_bias;   // bias holds one value for all columns
  kernels::Levels levels;  // of the forms that have them
};

// What tests and benchmarks may choose; 0 leaves it to the library.
struct LinearTuning {
  std::int32_t kernel = 0;  // 1: of few rows (at most 16), 2: of many
  std::int32_t rows = 0;    // quantized at a time, at most; in whole tiles
};

// Why the kernels can't take this product (a pointer that is not aligned), or null.
const char* refusal(const LinearProduct& product);

// Scratch memory that `run` needs, aligned to 16 bytes.
std::size_t scratch_bytes(const LinearProduct& product, const LinearTuning& tuning = {});

// Enqueues the product on a stream (a cudaStream_t). Null, or what CUDA says went wrong.
const char* run(const LinearProduct& product, void* scratch, void* stream,
                const LinearTuning& tuning = {});

}  // namespace qc::cuda

#endif  // QC_CUDA_LINEAR_H_
