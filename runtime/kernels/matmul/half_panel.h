// Half a panel in one 256-bit register of int32: what the kernels on such registers share. The
// files that include this differ in their flags. Internal linkage throughout: see
// matmul_avx512vnni.cc.
#ifndef QC_KERNELS_MATMUL_HALF_PANEL_H_
#define QC_KERNELS_MATMUL_HALF_PANEL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kHalf = 8;        // columns in half a panel
constexpr int kHalfBytes = 32;  // bytes of a block that belong to them
// Weights arrive from L2 or beyond when few rows share them; this far ahead hides the latency.
constexpr int kPrefetchBytes = 2048;

// Four codes of activations, for all columns alike.
__m256i broadcast(const std::int8_t* quad) {
  std::int32_t bits;
  __builtin_memcpy(&bits, quad, sizeof bits);
  return _mm256_set1_epi32(bits);
}

// Half a block of packed weights.
__m256i load(const std::uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

// What the dot products of half `h` of group `g` start with, for all rows. `zero_points`: those of
// the half, or null.
template <int kRows, int kHalves>
inline __attribute__((always_inline)) void start_dots(__m256i (&dots)[kRows][kHalves], int h,
                                                      const std::uint8_t* zero_points,
                                                      const std::int32_t* starts, int64_t groups,
                                                      int64_t g) {
  // Zero points are below 2^8 and sums of codes below 2^15: one 16-bit multiply, exact.
  __m256i zero = _mm256_setzero_si256();
  if (zero_points != nullptr) {
    zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero_points)));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m256i start = _mm256_set1_epi32(starts[r * groups + g]);
    dots[r][h] = zero_points != nullptr ? _mm256_madd_epi16(zero, start) : start;
  }
}

// Writes half `h` of a tile's sums, whose first column is `column`.
template <int kRows, int kHalves>
inline __attribute__((always_inline)) void write_half(const __m256 (&sums)[kRows][kHalves], int h,
                                                      const Activations& a, const Weights& w,
                                                      const Tile& t, int64_t row, int64_t column) {
  const int64_t columns = t.column_end - column;
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(
      _mm256_set1_epi32(static_cast<int>(columns < kHalf ? columns : kHalf)), lanes);
  const __m256 bias =
      w.bias != nullptr ? _mm256_maskload_ps(w.bias + column, mask) : _mm256_setzero_ps();
  float* out = t.out + (row - t.row_begin) * t.out_stride + column - t.panel_begin * kPanel;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m256 row_scale = _mm256_set1_ps(a.scale_count == 1 ? a.scales[row + r] : 1.0f);
    _mm256_maskstore_ps(out + r * t.out_stride, mask, _mm256_fmadd_ps(sums[r][h], row_scale, bias));
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_HALF_PANEL_H_
