// The integer matrix products on NVIDIA GPUs: the formula of kernels/matmul/matmul.h on device
// memory.
//
// Rows of X are quantized into scratch memory, then multiplied by packed weights on tensor cores
// (mma m16n8k32, the weights as its 16 rows, tokens as its 8 columns). Integer parts are exact, as
// on the CPU. Groups are added in an order that the shapes and the device fix: a result is the same
// bits from run to run, but between numbers of rows the last bits may differ.
#ifndef QC_CUDA_MATMUL_H_
#define QC_CUDA_MATMUL_H_

#include <cstddef>
#include <cstdint>

#include "cuda/elements.h"

namespace qc::cuda {

// Everything pointed to is on the device; see docs/ops.md for the shapes.
struct Product {
  const void* x;  // [rows, k]
  std::int64_t rows, k, n, group_size;
  std::int64_t activation_block;  // k or group_size: what shares a computed scale
  const std::uint8_t* codes;
  const std::uint16_t* scales;  // float16
  const std::uint8_t* zero_points;
  const float* bias;
  Output outputs[kOutputs];
  Element element;              // of x and the outputs
  float static_scale;           // 0: computed
  std::int32_t bits;            // of the weights: a width of the layout
  std::int32_t one_zero_point;  // zero_points holds one value for all weights
  std::int32_t one_bias;        // bias holds one value for all columns
};

// What tests and benchmarks may choose; 0 leaves it to the library.
struct Tuning {
  std::int32_t kernel = 0;  // 1: small, 2: large, 3: wgmma, which is not chosen by itself yet
  std::int32_t splits = 0;  // of k, in the large kernel
  std::int32_t rows = 0;    // quantized at a time, at most; in whole tiles
  std::int32_t serial = 0;  // 1: no kernel begins before the one in front of it has ended
};

// Why the kernels can't take this product (a pointer that is not aligned), or null.
const char* refusal(const Product& product);

// Scratch memory that `run` needs, aligned to 16 bytes.
std::size_t scratch_bytes(const Product& product, const Tuning& tuning = {});

// Enqueues the product on a stream (a cudaStream_t). Null, or what CUDA says went wrong.
const char* run(const Product& product, void* scratch, void* stream, const Tuning& tuning = {});

}  // namespace qc::cuda

#endif  // QC_CUDA_MATMUL_H_
