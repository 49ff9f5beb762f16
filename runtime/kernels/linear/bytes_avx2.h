// Bytes in registers under one set of names, for kernels that are written once for every width of
// register:
//   kPerPanel            registers that hold a quad of each column of a panel
//   kRegisters           there are
//   quad                 four codes of activations in every lane
//   times                16-bit products, modulo 2^16
//   times_ints           32-bit products
//   left, right          16-bit shifts, of unsigned words; right_ints of signed 32-bit integers
//   spread_words, _bytes the low word, or byte, of each 32-bit integer in all of it; the rest was 0
//   both<m, n>           the bits of one where m has ones, of the other where n has; m & n is 0
//   table, look_up       16 bytes, and which of them each byte names: 0 .. 15
// Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_BYTES_AVX2_H_
#define QC_KERNELS_LINEAR_BYTES_AVX2_H_

#include "kernels/linear/bytes_x86.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {
namespace {

struct Bytes256 {
  QC_X86_BYTES(_mm256, si256, __m256i)

  using Lanes = Avx2;
  static constexpr int kPerPanel = 2;
  static constexpr int kRegisters = 16;

  template <int kFirst, int kSecond>
  static QC_INLINE Reg both(Reg first, Reg second) {
    return or_(and_(first, all(kFirst)), and_(second, all(kSecond)));
  }
  static QC_INLINE Reg table(const std::uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static QC_INLINE Reg spread_bytes(Reg x) {
    const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(first));
  }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_BYTES_AVX2_H_
