// Internal linkage throughout: see matmul_avx512vnni.cc.
#include <immintrin.h>

#include <cstdint>

#include "kernels/quantize/quantize.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kLanes = 16;
constexpr int kInfinityBits = 0x7f800000;

__mmask16 lanes_left(int64_t count) {
  return count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

// The largest magnitude as the bits of a float: it orders like the float, with inf and NaN on top.
__m512i peak_bits(const float* x, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i peak = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512i bits = _mm512_maskz_loadu_epi32(lanes_left(count - i), x + i);
    peak = _mm512_max_epu32(peak, _mm512_and_si512(bits, magnitude));
  }
  return peak;
}

std::uint32_t largest(__m512i bits) { return _mm512_reduce_max_epu32(bits); }

// Quantizes `count` values with one scale; returns the sum of their codes.
std::int32_t quantize_run(const float* x, std::int8_t* codes, int64_t count, __m512 scale) {
  const __m512 high = _mm512_set1_ps(127.0f);
  const __m512 low = _mm512_set1_ps(-127.0f);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 lanes = lanes_left(count - i);
    const __m512 quotient = _mm512_div_ps(_mm512_maskz_loadu_ps(lanes, x + i), scale);
    const __m512i code = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(quotient, high), low));
    sum = _mm512_add_epi32(sum, code);
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, lanes, code);
  }
  return _mm512_reduce_add_epi32(sum);
}

}  // namespace

void quantize_f32_s8_avx512(const QuantizeRow& row) {
  const int64_t blocks = (row.k + row.block - 1) / row.block;
  const int64_t groups = (row.k + row.group_size - 1) / row.group_size;
  __m512i row_peak = _mm512_setzero_si512();
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * row.block;
    const int64_t left = row.k - first;
    const __m512i peak = peak_bits(row.x + first, left < row.block ? left : row.block);
    row_peak = _mm512_max_epu32(row_peak, peak);
    float scale = row.static_scale;
    if (scale == 0.0f) {
      const std::uint32_t bits = largest(peak);
      float magnitude;
      __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
      scale = magnitude / 127.0f;
      if (scale == 0.0f) scale = 1.0f;
    }
    row.scales[b] = scale;
  }
  for (int64_t i = row.k; i < row.padded_k; ++i) row.codes[i] = 0;
  if (largest(row_peak) >= kInfinityBits) {
    for (int64_t b = 0; b < blocks; ++b) row.scales[b] = __builtin_nanf("");
    for (int64_t i = 0; i < row.k; ++i) row.codes[i] = 0;
    for (int64_t g = 0; g < groups; ++g) row.starts[g] = 0;
    return;
  }
  const bool by_group = blocks > 1;
  __m512 scale = _mm512_set1_ps(row.scales[0]);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * row.group_size;
    const int64_t left = row.k - first;
    if (by_group) scale = _mm512_set1_ps(row.scales[g]);
    row.starts[g] =
        row.start_factor * quantize_run(row.x + first, row.codes + first,
                                        left < row.group_size ? left : row.group_size, scale);
  }
}

}  // namespace qc::kernels
