// Float32 registers under one set of names, for kernels that are written once for every ISA:
//   power(n) = 2^n for whole n in -126 .. 127; fma(a, b, c) = a * b + c; sum and largest of the
//   lanes.
// Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_AVX512_H_
#define QC_KERNELS_SIMD_AVX512_H_

#include <immintrin.h>

namespace qc::kernels {
namespace {

struct Avx512 {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kVectors = 4;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector set(float x) { return _mm512_set1_ps(x); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector div(Vector a, Vector b) { return _mm512_div_ps(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
  static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static Vector round(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
  static Vector power(Vector n) { return _mm512_scalef_ps(set(1.0f), n); }
  static float sum(Vector x) { return _mm512_reduce_add_ps(x); }
  static float largest(Vector x) { return _mm512_reduce_max_ps(x); }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_AVX512_H_
