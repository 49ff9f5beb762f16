// Internal linkage throughout: see matmul_avx512vnni.cc.
#include <arm_neon.h>

#include <cstdint>

#include "kernels/quantize/quantize.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kLanes = 8;
constexpr std::uint32_t kInfinityBits = 0x7f800000;

// Up to eight values, zeros where there are fewer.
float32x4x2_t load(const float* x, int64_t count) {
  if (count >= kLanes) return {{vld1q_f32(x), vld1q_f32(x + 4)}};
  float values[kLanes] = {};
  __builtin_memcpy(values, x, static_cast<std::size_t>(count) * sizeof(float));
  return {{vld1q_f32(values), vld1q_f32(values + 4)}};
}

uint32x4_t magnitude_bits(float32x4_t x) { return vreinterpretq_u32_f32(vabsq_f32(x)); }

// The largest magnitude as the bits of a float: it orders like the float, with inf and NaN on top.
std::uint32_t peak_bits(const float* x, int64_t count) {
  uint32x4_t peaks[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};
  for (int64_t i = 0; i < count; i += kLanes) {
    const float32x4x2_t values = load(x + i, count - i);
    peaks[0] = vmaxq_u32(peaks[0], magnitude_bits(values.val[0]));
    peaks[1] = vmaxq_u32(peaks[1], magnitude_bits(values.val[1]));
  }
  return vmaxvq_u32(vmaxq_u32(peaks[0], peaks[1]));
}

// Four codes as int32, rounded half to even.
int32x4_t codes_of(float32x4_t x, float32x4_t scale) {
  const float32x4_t quotient = vminq_f32(vdivq_f32(x, scale), vdupq_n_f32(127.0f));
  return vcvtnq_s32_f32(vmaxq_f32(quotient, vdupq_n_f32(-127.0f)));
}

// Quantizes `count` values with one scale; returns the sum of their codes.
std::int32_t quantize_run(const float* x, std::int8_t* codes, int64_t count, float32x4_t scale) {
  int32x4_t sum = vdupq_n_s32(0);
  for (int64_t i = 0; i < count; i += kLanes) {
    const float32x4x2_t values = load(x + i, count - i);
    const int16x8_t words = vcombine_s16(vmovn_s32(codes_of(values.val[0], scale)),
                                         vmovn_s32(codes_of(values.val[1], scale)));
    sum = vpadalq_s16(sum, words);
    std::int8_t bytes[kLanes];
    vst1_s8(bytes, vmovn_s16(words));
    const int64_t width = count - i < kLanes ? count - i : kLanes;
    __builtin_memcpy(codes + i, bytes, static_cast<std::size_t>(width));
  }
  return vaddvq_s32(sum);
}

}  // namespace

void quantize_f32_s8_neon(const QuantizeRow& row) {
  const int64_t blocks = (row.k + row.block - 1) / row.block;
  const int64_t groups = (row.k + row.group_size - 1) / row.group_size;
  std::uint32_t row_peak = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * row.block;
    const int64_t left = row.k - first;
    const std::uint32_t bits = peak_bits(row.x + first, left < row.block ? left : row.block);
    row_peak = bits > row_peak ? bits : row_peak;
    float scale = row.static_scale;
    if (scale == 0.0f) {
      float magnitude;
      __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
      scale = magnitude / 127.0f;
      if (scale == 0.0f) scale = 1.0f;
    }
    row.scales[b] = scale;
  }
  for (int64_t i = row.k; i < row.padded_k; ++i) row.codes[i] = 0;
  if (row_peak >= kInfinityBits) {
    for (int64_t b = 0; b < blocks; ++b) row.scales[b] = __builtin_nanf("");
    for (int64_t i = 0; i < row.k; ++i) row.codes[i] = 0;
    for (int64_t g = 0; g < groups; ++g) row.starts[g] = 0;
    return;
  }
  const bool by_group = blocks > 1;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * row.group_size;
    const int64_t left = row.k - first;
    const float32x4_t scale = vdupq_n_f32(row.scales[by_group ? g : 0]);
    row.starts[g] =
        row.start_factor * quantize_run(row.x + first, row.codes + first,
                                        left < row.group_size ? left : row.group_size, scale);
  }
}

}  // namespace qc::kernels
