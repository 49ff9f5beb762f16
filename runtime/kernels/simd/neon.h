// The registers of NEON under the names that avx2.h explains. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_NEON_H_
#define QC_KERNELS_SIMD_NEON_H_

#include <arm_neon.h>

#include <cstdint>

namespace qc::kernels {
namespace {

struct Neon {
  using Vector = float32x4_t;
  using Ints = int32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;
  static constexpr int kRunVectors = 2;

  static Vector zero() { return set(0.0f); }
  static Vector set(float x) { return vdupq_n_f32(x); }
  static Vector load(const float* p) { return vld1q_f32(p); }
  static Vector load(const float* p, std::int64_t count) {
    if (count >= kLanes) return load(p);
    float values[kLanes] = {};
    if (count > 0) __builtin_memcpy(values, p, static_cast<std::size_t>(count) * sizeof(float));
    return load(values);
  }
  static void store(float* p, Vector x) { vst1q_f32(p, x); }
  static void store(float* p, std::int64_t count, Vector x) {
    if (count >= kLanes) return store(p, x);
    float values[kLanes];
    store(values, x);
    if (count > 0) __builtin_memcpy(p, values, static_cast<std::size_t>(count) * sizeof(float));
  }
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
  static Ints set_ints(std::int32_t x) { return vdupq_n_s32(x); }
  static Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Ints times(Ints bytes, std::int32_t factor) { return vmulq_n_s32(bytes, factor); }
  static Ints round_to_ints(Vector x) { return vcvtnq_s32_f32(x); }
  static Vector to_floats(Ints x) { return vcvtq_f32_s32(x); }
  static Ints load_bytes(const std::uint8_t* p) {
    std::uint32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
  }
  static Ints larger_magnitude(Ints peak, Vector x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(x));
    return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(peak), bits));
  }
  static std::uint32_t largest_int(Ints x) { return vmaxvq_u32(vreinterpretq_u32_s32(x)); }
  static std::int32_t sum_ints(Ints x) { return vaddvq_s32(x); }
  static void store_codes(std::int8_t* p, std::int64_t count, const Ints (&codes)[kRunVectors]) {
    const int16x8_t words = vcombine_s16(vmovn_s32(codes[0]), vmovn_s32(codes[1]));
    const int8x8_t bytes = vmovn_s16(words);
    __builtin_memcpy(p, &bytes, static_cast<std::size_t>(count));
  }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_NEON_H_
