// Conversions between float32 and the 16-bit float types, round to nearest even.
#ifndef QC_KERNELS_CONVERT_CONVERT_H_
#define QC_KERNELS_CONVERT_CONVERT_H_

#include <cstdint>

namespace qc::kernels {

// One value each, on any machine.
float float_from_half(std::uint16_t half);
std::uint16_t half_from_float(float value);
float float_from_bfloat(std::uint16_t bfloat);
std::uint16_t bfloat_from_float(float value);

using Widen = void (*)(const std::uint16_t* from, float* to, std::int64_t count);
using Narrow = void (*)(const float* from, std::uint16_t* to, std::int64_t count);

#define QC_SIMD(architecture, simd, needs, convert, ...)                              \
  void widen_f16_##convert(const std::uint16_t* from, float* to, std::int64_t count); \
  void narrow_f16_##convert(const float* from, std::uint16_t* to, std::int64_t count);
#include "kernels/dispatch/isas.inc"
void widen_bf16(const std::uint16_t* from, float* to, std::int64_t count);
void narrow_bf16(const float* from, std::uint16_t* to, std::int64_t count);

}  // namespace qc::kernels

#endif  // QC_KERNELS_CONVERT_CONVERT_H_
