// Bytes in the registers of NEON, under the names that bytes_avx2.h explains. Internal linkage
// throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_BYTES_NEON_H_
#define QC_KERNELS_LINEAR_BYTES_NEON_H_

#include <arm_neon.h>

#include <cstdint>

#include "kernels/planes.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {
namespace {

struct Bytes128 {
  using Lanes = Neon;
  using Reg = int32x4_t;
  static constexpr int kPerPanel = 4;
  static constexpr int kRegisters = 32;

  static QC_INLINE uint8x16_t u8(Reg x) { return vreinterpretq_u8_s32(x); }
  static QC_INLINE uint16x8_t u16(Reg x) { return vreinterpretq_u16_s32(x); }
  static QC_INLINE uint32x4_t u32(Reg x) { return vreinterpretq_u32_s32(x); }
  static QC_INLINE int8x16_t s8(Reg x) { return vreinterpretq_s8_s32(x); }

  static QC_INLINE Reg load(const std::uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
  static QC_INLINE void store(std::uint8_t* p, Reg x) { vst1q_u8(p, u8(x)); }
  static QC_INLINE Reg all(int byte) {
    return vreinterpretq_s32_u8(vdupq_n_u8(static_cast<std::uint8_t>(byte)));
  }
  static QC_INLINE Reg quad(const std::int8_t* p) {
    std::int32_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return vdupq_n_s32(value);
  }
  static QC_INLINE Reg and_(Reg a, Reg b) { return vandq_s32(a, b); }
  static QC_INLINE Reg or_(Reg a, Reg b) { return vorrq_s32(a, b); }
  static QC_INLINE Reg xor_(Reg a, Reg b) { return veorq_s32(a, b); }
  static QC_INLINE Reg sub(Reg a, Reg b) { return vreinterpretq_s32_u8(vsubq_u8(u8(a), u8(b))); }
  static QC_INLINE Reg times(Reg a, Reg b) {
    return vreinterpretq_s32_u16(vmulq_u16(u16(a), u16(b)));
  }
  static QC_INLINE Reg times_ints(Reg a, Reg b) { return vmulq_s32(a, b); }
  static QC_INLINE Reg sub_ints(Reg a, Reg b) { return vsubq_s32(a, b); }
  template <int kBits>
  static QC_INLINE Reg left(Reg x) {
    return vreinterpretq_s32_u16(vshlq_n_u16(u16(x), kBits));
  }
  template <int kBits>
  static QC_INLINE Reg right(Reg x) {
    return vreinterpretq_s32_u16(vshrq_n_u16(u16(x), kBits));
  }
  template <int kBits>
  static QC_INLINE Reg right_ints(Reg x) {
    return vshrq_n_s32(x, kBits);
  }
  template <int kFirst, int kSecond>
  static QC_INLINE Reg both(Reg first, Reg second) {
    return and_(vbslq_s32(u32(all(kFirst)), first, second), all(kFirst | kSecond));
  }
  static QC_INLINE Reg table(const std::uint8_t* p) { return load(p); }
  static QC_INLINE Reg look_up(Reg table, Reg indices) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(u8(table), u8(indices)));
  }
  static QC_INLINE Reg spread_words(Reg x) { return vorrq_s32(x, vshlq_n_s32(x, 16)); }
  static QC_INLINE Reg spread_bytes(Reg x) { return vmulq_n_s32(x, 0x01010101); }
  static QC_INLINE Reg load_ints(const std::int32_t* p) { return vld1q_s32(p); }
  static QC_INLINE void store_ints(std::int32_t* p, Reg x) { vst1q_s32(p, x); }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_BYTES_NEON_H_
