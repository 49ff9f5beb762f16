// What the classes of bytes on x86 share: intrinsics that differ in their prefix alone.
#ifndef QC_KERNELS_LINEAR_BYTES_X86_H_
#define QC_KERNELS_LINEAR_BYTES_X86_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/planes.h"

#define QC_X86_BYTES(mm, suffix, register)                                               \
  using Reg = register;                                                                  \
  static QC_INLINE Reg load(const std::uint8_t* p) {                                     \
    return mm##_loadu_##suffix(reinterpret_cast<const Reg*>(p));                         \
  }                                                                                      \
  static QC_INLINE void store(std::uint8_t* p, Reg x) {                                  \
    mm##_storeu_##suffix(reinterpret_cast<Reg*>(p), x);                                  \
  }                                                                                      \
  static QC_INLINE Reg load_ints(const std::int32_t* p) {                                \
    return mm##_loadu_##suffix(reinterpret_cast<const Reg*>(p));                         \
  }                                                                                      \
  static QC_INLINE void store_ints(std::int32_t* p, Reg x) {                             \
    mm##_storeu_##suffix(reinterpret_cast<Reg*>(p), x);                                  \
  }                                                                                      \
  static QC_INLINE Reg all(int byte) { return mm##_set1_epi8(static_cast<char>(byte)); } \
  static QC_INLINE Reg quad(const std::int8_t* p) {                                      \
    std::int32_t value;                                                                  \
    __builtin_memcpy(&value, p, sizeof value);                                           \
    return mm##_set1_epi32(value);                                                       \
  }                                                                                      \
  static QC_INLINE Reg and_(Reg a, Reg b) { return mm##_and_##suffix(a, b); }            \
  static QC_INLINE Reg or_(Reg a, Reg b) { return mm##_or_##suffix(a, b); }              \
  static QC_INLINE Reg xor_(Reg a, Reg b) { return mm##_xor_##suffix(a, b); }            \
  static QC_INLINE Reg sub(Reg a, Reg b) { return mm##_sub_epi8(a, b); }                 \
  static QC_INLINE Reg times(Reg a, Reg b) { return mm##_mullo_epi16(a, b); }            \
  static QC_INLINE Reg times_ints(Reg a, Reg b) { return mm##_mullo_epi32(a, b); }       \
  static QC_INLINE Reg sub_ints(Reg a, Reg b) { return mm##_sub_epi32(a, b); }           \
  template <int kBits>                                                                   \
  static QC_INLINE Reg left(Reg x) {                                                     \
    return mm##_slli_epi16(x, kBits);                                                    \
  }                                                                                      \
  template <int kBits>                                                                   \
  static QC_INLINE Reg right(Reg x) {                                                    \
    return mm##_srli_epi16(x, kBits);                                                    \
  }                                                                                      \
  template <int kBits>                                                                   \
  static QC_INLINE Reg right_ints(Reg x) {                                               \
    return mm##_srai_epi32(x, kBits);                                                    \
  }                                                                                      \
  static QC_INLINE Reg look_up(Reg table, Reg indices) {                                 \
    return mm##_shuffle_epi8(table, indices);                                            \
  }                                                                                      \
  static QC_INLINE Reg spread_words(Reg x) { return or_(x, mm##_slli_epi32(x, 16)); }

#endif  // QC_KERNELS_LINEAR_BYTES_X86_H_
