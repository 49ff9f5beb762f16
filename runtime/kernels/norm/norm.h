// A residual and the norm behind it, of one row:
//
//   sum = x + skip
//   y   = sum / sqrt(mean(sum^2) + epsilon) * weight                              (RMS norm)
//   y   = (sum - mean) / sqrt(mean((sum - mean)^2) + epsilon) * weight + bias     (layer norm)
#ifndef QC_KERNELS_NORM_NORM_H_
#define QC_KERNELS_NORM_NORM_H_

#include <cstdint>

namespace qc::kernels {

struct NormRow {
  const float *x, *skip, *weight;  // [n]
  const float* bias;               // [n], or null: RMS norm
  std::int64_t n;
  float epsilon;
  float* sum;  // [n]; may be y
  float* y;    // [n]
};

using AddNorm = void (*)(const NormRow&);

#define QC_SIMD(architecture, simd, ...) void add_norm_f32_##simd(const NormRow&);
#include "kernels/dispatch/isas.inc"

}  // namespace qc::kernels

#endif  // QC_KERNELS_NORM_NORM_H_
