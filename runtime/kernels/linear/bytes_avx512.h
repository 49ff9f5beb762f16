// Bytes in 512-bit registers, under the names that bytes_avx2.h explains. Internal linkage
// throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_BYTES_AVX512_H_
#define QC_KERNELS_LINEAR_BYTES_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/planes.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {
namespace {

struct Bytes512 {
  using Lanes = Avx512;
  using Reg = __m512i;
  static constexpr int kPerPanel = 1;
  static constexpr int kRegisters = 32;

  static QC_INLINE Reg load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static QC_INLINE void store(std::uint8_t* p, Reg x) { _mm512_storeu_si512(p, x); }
  static QC_INLINE Reg all(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
  static QC_INLINE Reg quad(const std::int8_t* p) {
    std::int32_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
  }
  static QC_INLINE Reg and_(Reg a, Reg b) { return _mm512_and_si512(a, b); }
  static QC_INLINE Reg or_(Reg a, Reg b) { return _mm512_or_si512(a, b); }
  static QC_INLINE Reg xor_(Reg a, Reg b) { return _mm512_xor_si512(a, b); }
  static QC_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_epi8(a, b); }
  static QC_INLINE Reg times(Reg a, Reg b) { return _mm512_mullo_epi16(a, b); }
  static QC_INLINE Reg times_ints(Reg a, Reg b) { return _mm512_mullo_epi32(a, b); }
  static QC_INLINE Reg sub_ints(Reg a, Reg b) { return _mm512_sub_epi32(a, b); }
  template <int kBits>
  static QC_INLINE Reg left(Reg x) {
    return _mm512_slli_epi16(x, kBits);
  }
  template <int kBits>
  static QC_INLINE Reg right(Reg x) {
    return _mm512_srli_epi16(x, kBits);
  }
  template <int kBits>
  static QC_INLINE Reg right_ints(Reg x) {
    return _mm512_srai_epi32(x, kBits);
  }
  static QC_INLINE Reg spread_words(Reg x) { return _mm512_or_si512(x, _mm512_slli_epi32(x, 16)); }
  static QC_INLINE Reg spread_bytes(Reg x) {
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8,
                                                                       8, 8, 12, 12, 12, 12)));
  }
  static QC_INLINE Reg load_ints(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static QC_INLINE void store_ints(std::int32_t* p, Reg x) { _mm512_storeu_si512(p, x); }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_BYTES_AVX512_H_
