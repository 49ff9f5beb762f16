// Half a panel in one 256-bit register: what the kernels on such registers share. The files that
// include this differ in their flags. Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_MATMUL_HALF_PANEL_H_
#define QC_KERNELS_MATMUL_HALF_PANEL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/matmul/tile.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {
namespace {

constexpr int kHalfBytes = kBlockBytes / 2;
// Weights arrive from L2 or beyond when few rows share them; this far ahead hides the latency.
constexpr int kPrefetchBytes = 2048;

// Four codes of activations, for all columns alike.
QC_INLINE __m256i broadcast(const std::int8_t* quad) {
  std::int32_t bits;
  __builtin_memcpy(&bits, quad, sizeof bits);
  return _mm256_set1_epi32(bits);
}

// Halves of a block of packed weights.
template <int kHalves>
QC_INLINE void load(__m256i (&packed)[kHalves], const std::uint8_t* codes) {
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    packed[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + h * kHalfBytes));
  }
}

// Of packed codes of 4 bits, or of the nibbles of wider ones: the low and the high nibbles.
template <int kHalves>
QC_INLINE void low_nibbles(__m256i (&codes)[kHalves], const __m256i (&packed)[kHalves]) {
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) codes[h] = _mm256_and_si256(packed[h], _mm256_set1_epi8(15));
}

template <int kHalves>
QC_INLINE void high_nibbles(__m256i (&codes)[kHalves], const __m256i (&packed)[kHalves]) {
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    codes[h] = _mm256_and_si256(_mm256_srli_epi16(packed[h], 4), _mm256_set1_epi8(15));
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_HALF_PANEL_H_
