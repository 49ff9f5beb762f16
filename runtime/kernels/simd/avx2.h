// Registers of float32 under one set of names, for kernels that are written once for every ISA:
//   fma(a, b, c)         a * b + c
//   power(n)             2^n for whole n in -126 .. 127
//   sum, largest         of the lanes
//   load, store          of the first `count` lanes, where there is a count: no others are touched
//                        in memory, and those of the register are 0
//   Ints                 as many int32
//   times(b, f)          b * f, for b below 2^8 and |f| below 2^15
//   load_bytes           as many uint8
//   larger_magnitude     by the bits, which order like the floats, with inf and NaN on top
//   store_codes          the low bytes of kRunVectors registers, `count` of them
// Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_AVX2_H_
#define QC_KERNELS_SIMD_AVX2_H_

#include "kernels/simd/x86.h"

namespace qc::kernels {
namespace {

struct Avx2 {
  QC_X86_OPERATIONS(_mm256, __m256, __m256i)

  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;

  static Vector load(const float* p, std::int64_t count) {
    reads(p, count, kLanes);
    return _mm256_maskload_ps(p, first(count));
  }
  static void store(float* p, std::int64_t count, Vector x) {
    writes(p, count, kLanes);
    _mm256_maskstore_ps(p, first(count), x);
  }
  static Vector round(Vector x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Vector power(Vector n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static float sum(Vector x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float largest(Vector x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static Ints load_bytes(const std::uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Ints larger_magnitude(Ints peak, Vector x) {
    return _mm256_max_epu32(peak, _mm256_and_si256(_mm256_castps_si256(x), set_ints(INT32_MAX)));
  }
  static std::uint32_t largest_int(Ints x) {
    std::uint32_t lanes[kLanes];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), x);
    std::uint32_t result = 0;
    for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
    return result;
  }
  static std::int32_t sum_ints(Ints x) {
    std::int32_t lanes[kLanes];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), x);
    std::int32_t result = 0;
    for (const std::int32_t lane : lanes) result += lane;
    return result;
  }
  static void store_codes(std::int8_t* p, std::int64_t count, const Ints (&codes)[kRunVectors]) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(codes[0]), _mm256_extracti128_si256(codes[0], 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    __builtin_memcpy(p, &bytes, static_cast<std::size_t>(count));
  }

 private:
  static __m256i first(std::int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int most = static_cast<int>(count < kLanes ? count : kLanes);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(most), lanes);
  }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_AVX2_H_
