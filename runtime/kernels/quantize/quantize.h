// Symmetric int8 quantization of one row of activations.
//
//   scale = max |x| / 127, or 1 where that is 0        (dynamic)
//   q     = clip(round_half_even(x / scale), -127, 127)
//
// A row with a non-finite value gets codes 0 and a scale of NaN.
#ifndef QC_KERNELS_QUANTIZE_QUANTIZE_H_
#define QC_KERNELS_QUANTIZE_QUANTIZE_H_

#include <cstdint>

namespace qc::kernels {

struct QuantizeRow {
  const float* x;  // [k]
  std::int64_t k;
  std::int64_t group_size;  // of the weights
  float static_scale;       // 0: dynamic
  std::int8_t* codes;       // [padded_k]; zeros are written from k on
  std::int64_t padded_k;
  float* scale;
  std::int32_t* sums;  // [ceil(k / group_size)]: of the codes of each group
};

using Quantize = void (*)(const QuantizeRow&);

#define QC_SIMD(architecture, simd, ...) void quantize_f32_s8_##simd(const QuantizeRow&);
#include "kernels/dispatch/isas.inc"

}  // namespace qc::kernels

#endif  // QC_KERNELS_QUANTIZE_QUANTIZE_H_
