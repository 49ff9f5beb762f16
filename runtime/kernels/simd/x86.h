// What the classes of x86 share: intrinsics that differ in their prefix alone.
#ifndef QC_KERNELS_SIMD_X86_H_
#define QC_KERNELS_SIMD_X86_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/sanitize.h"

#define QC_X86_OPERATIONS(mm, floats, ints)                                           \
  using Vector = floats;                                                              \
  using Ints = ints;                                                                  \
  static constexpr int kRunVectors = 1;                                               \
  static Vector zero() { return mm##_setzero_ps(); }                                  \
  static Vector set(float x) { return mm##_set1_ps(x); }                              \
  static Vector load(const float* p) { return mm##_loadu_ps(p); }                     \
  static void store(float* p, Vector x) { mm##_storeu_ps(p, x); }                     \
  static Vector fma(Vector a, Vector b, Vector c) { return mm##_fmadd_ps(a, b, c); }  \
  static Vector add(Vector a, Vector b) { return mm##_add_ps(a, b); }                 \
  static Vector sub(Vector a, Vector b) { return mm##_sub_ps(a, b); }                 \
  static Vector mul(Vector a, Vector b) { return mm##_mul_ps(a, b); }                 \
  static Vector div(Vector a, Vector b) { return mm##_div_ps(a, b); }                 \
  static Vector min(Vector a, Vector b) { return mm##_min_ps(a, b); }                 \
  static Vector max(Vector a, Vector b) { return mm##_max_ps(a, b); }                 \
  static Ints set_ints(std::int32_t x) { return mm##_set1_epi32(x); }                 \
  static Ints add_ints(Ints a, Ints b) { return mm##_add_epi32(a, b); }               \
  static Ints round_to_ints(Vector x) { return mm##_cvtps_epi32(x); }                 \
  static Vector to_floats(Ints x) { return mm##_cvtepi32_ps(x); }                     \
  static Ints times(Ints bytes, std::int32_t factor) {                                \
    return mm##_madd_epi16(bytes, set_ints(factor)); /* one 16-bit multiply, exact */ \
  }

#endif  // QC_KERNELS_SIMD_X86_H_
