// The registers of AVX-512 under the names that avx2.h explains. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_AVX512_H_
#define QC_KERNELS_SIMD_AVX512_H_

#include "kernels/simd/x86.h"

namespace qc::kernels {
namespace {

struct Avx512 {
  QC_X86_OPERATIONS(_mm512, __m512, __m512i)

  static constexpr int kLanes = 16;
  static constexpr int kVectors = 4;

  static Vector load(const float* p, std::int64_t count) {
    reads(p, count, kLanes);
    return _mm512_maskz_loadu_ps(first(count), p);
  }
  static void store(float* p, std::int64_t count, Vector x) {
    writes(p, count, kLanes);
    _mm512_mask_storeu_ps(p, first(count), x);
  }
  static Vector round(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
  static Vector power(Vector n) { return _mm512_scalef_ps(set(1.0f), n); }
  static float sum(Vector x) { return _mm512_reduce_add_ps(x); }
  static float largest(Vector x) { return _mm512_reduce_max_ps(x); }
  static Ints load_bytes(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Ints larger_magnitude(Ints peak, Vector x) {
    return _mm512_max_epu32(peak, _mm512_and_si512(_mm512_castps_si512(x), set_ints(INT32_MAX)));
  }
  static std::uint32_t largest_int(Ints x) { return _mm512_reduce_max_epu32(x); }
  static std::int32_t sum_ints(Ints x) { return _mm512_reduce_add_epi32(x); }
  static void store_codes(std::int8_t* p, std::int64_t count, const Ints (&codes)[kRunVectors]) {
    if (count == kLanes) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes[0]));
    } else {
      writes(p, count, kLanes);
      _mm512_mask_cvtepi32_storeu_epi8(p, first(count), codes[0]);
    }
  }

 private:
  static __mmask16 first(std::int64_t count) {
    if (count >= kLanes) return 0xffff;
    return static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
  }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_AVX512_H_
