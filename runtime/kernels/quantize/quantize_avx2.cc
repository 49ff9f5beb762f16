// Internal linkage throughout: see matmul_avx512vnni.cc.
#include <immintrin.h>

#include <cstdint>

#include "kernels/quantize/quantize.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kLanes = 8;
constexpr std::uint32_t kInfinityBits = 0x7f800000;

__m256 load(const float* x, int64_t count) {
  if (count >= kLanes) return _mm256_loadu_ps(x);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
  return _mm256_maskload_ps(x, mask);
}

// The largest magnitude as the bits of a float: it orders like the float, with inf and NaN on top.
std::uint32_t peak_bits(const float* x, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i peak = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m256i bits = _mm256_castps_si256(load(x + i, count - i));
    peak = _mm256_max_epu32(peak, _mm256_and_si256(bits, magnitude));
  }
  std::uint32_t lanes[kLanes];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), peak);
  std::uint32_t result = 0;
  for (std::uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

// Quantizes `count` values with one scale; returns the sum of their codes.
std::int32_t quantize_run(const float* x, std::int8_t* codes, int64_t count, __m256 scale) {
  const __m256 high = _mm256_set1_ps(127.0f);
  const __m256 low = _mm256_set1_ps(-127.0f);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m256 quotient = _mm256_div_ps(load(x + i, count - i), scale);
    const __m256i code = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(quotient, high), low));
    sum = _mm256_add_epi32(sum, code);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    const int64_t width = count - i < kLanes ? count - i : kLanes;
    __builtin_memcpy(codes + i, &bytes, static_cast<std::size_t>(width));
  }
  std::int32_t lanes[kLanes];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
  std::int32_t result = 0;
  for (std::int32_t lane : lanes) result += lane;
  return result;
}

}  // namespace

void quantize_f32_s8_avx2(const QuantizeRow& row) {
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
    const __m256 scale = _mm256_set1_ps(row.scales[by_group ? g : 0]);
    row.starts[g] =
        row.start_factor * quantize_run(row.x + first, row.codes + first,
                                        left < row.group_size ? left : row.group_size, scale);
  }
}

}  // namespace qc::kernels
