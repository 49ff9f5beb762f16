// Any 64-bit Arm converts float16 in hardware. Internal linkage throughout: see
// linear_avx512vnni.cc.
#include <arm_neon.h>

#include <cstdint>

#include "kernels/convert/convert.h"

namespace qc::kernels {
namespace {

constexpr int kLanes = 4;

float32x4_t widen(uint16x4_t half) { return vcvt_f32_f16(vreinterpret_f16_u16(half)); }

uint16x4_t narrow(float32x4_t wide) { return vreinterpret_u16_f16(vcvt_f16_f32(wide)); }

}  // namespace

void widen_f16_neon(const std::uint16_t* from, float* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) vst1q_f32(to + i, widen(vld1_u16(from + i)));
  for (; i < count; ++i) to[i] = vgetq_lane_f32(widen(vdup_n_u16(from[i])), 0);
}

void narrow_f16_neon(const float* from, std::uint16_t* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) vst1_u16(to + i, narrow(vld1q_f32(from + i)));
  for (; i < count; ++i) to[i] = vget_lane_u16(narrow(vdupq_n_f32(from[i])), 0);
}

}  // namespace qc::kernels
