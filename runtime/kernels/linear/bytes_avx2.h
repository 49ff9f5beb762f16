// Bytes in registers under one set of names, for kernels that are written once for every width of
// register:
//   kPerPanel            registers that hold a quad of each column of a panel
//   kRegisters           there are
//   quad                 four codes of activations in every lane
//   times                16-bit products, modulo 2^16
//   times_ints           32-bit products
//   left, right          16-bit shifts, of unsigned words; right_ints of signed 32-bit integers
//   spread_words, _bytes the low word, or byte, of each 32-bit integer in all of it; the rest was 0
// Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_BYTES_AVX2_H_
#define QC_KERNELS_LINEAR_BYTES_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/planes.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {
namespace {

struct Bytes256 {
  using Lanes = Avx2;
  using Reg = __m256i;
  static constexpr int kPerPanel = 2;
  static constexpr int kRegisters = 16;

  static QC_INLINE Reg load(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static QC_INLINE void store(std::uint8_t* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static QC_INLINE Reg all(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
  static QC_INLINE Reg quad(const std::int8_t* p) {
    std::int32_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return _mm256_set1_epi32(value);
  }
  static QC_INLINE Reg and_(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  static QC_INLINE Reg or_(Reg a, Reg b) { return _mm256_or_si256(a, b); }
  static QC_INLINE Reg xor_(Reg a, Reg b) { return _mm256_xor_si256(a, b); }
  static QC_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_epi8(a, b); }
  static QC_INLINE Reg times(Reg a, Reg b) { return _mm256_mullo_epi16(a, b); }
  static QC_INLINE Reg times_ints(Reg a, Reg b) { return _mm256_mullo_epi32(a, b); }
  static QC_INLINE Reg sub_ints(Reg a, Reg b) { return _mm256_sub_epi32(a, b); }
  template <int kBits>
  static QC_INLINE Reg left(Reg x) {
    return _mm256_slli_epi16(x, kBits);
  }
  template <int kBits>
  static QC_INLINE Reg right(Reg x) {
    return _mm256_srli_epi16(x, kBits);
  }
  template <int kBits>
  static QC_INLINE Reg right_ints(Reg x) {
    return _mm256_srai_epi32(x, kBits);
  }
  static QC_INLINE Reg spread_words(Reg x) { return _mm256_or_si256(x, _mm256_slli_epi32(x, 16)); }
  static QC_INLINE Reg spread_bytes(Reg x) {
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                      0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12)));
  }
  static QC_INLINE Reg load_ints(const std::int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static QC_INLINE void store_ints(std::int32_t* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_BYTES_AVX2_H_
