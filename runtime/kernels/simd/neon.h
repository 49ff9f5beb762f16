// Float32 registers under one set of names, for kernels that are written once for every ISA:
//   power(n) = 2^n for whole n in -126 .. 127; fma(a, b, c) = a * b + c; sum and largest of the
//   lanes.
// Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_NEON_H_
#define QC_KERNELS_SIMD_NEON_H_

#include <arm_neon.h>

namespace qc::kernels {
namespace {

struct Neon {
  using Vector = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;

  static Vector zero() { return vdupq_n_f32(0.0f); }
  static Vector set(float x) { return vdupq_n_f32(x); }
  static Vector load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Vector x) { vst1q_f32(p, x); }
  static Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector sub(Vector a, Vector b) { return vsubq_f32(a, b); }
  static Vector mul(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector div(Vector a, Vector b) { return vdivq_f32(a, b); }
  static Vector min(Vector a, Vector b) { return vminq_f32(a, b); }
  static Vector max(Vector a, Vector b) { return vmaxq_f32(a, b); }
  static Vector round(Vector x) { return vrndnq_f32(x); }
  static Vector power(Vector n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
  }
  static float sum(Vector x) { return vaddvq_f32(x); }
  static float largest(Vector x) { return vmaxvq_f32(x); }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_NEON_H_
