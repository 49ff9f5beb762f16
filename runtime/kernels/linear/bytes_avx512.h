// Bytes in 512-bit registers, under the names that bytes_avx2.h explains. Internal linkage
// throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_BYTES_AVX512_H_
#define QC_KERNELS_LINEAR_BYTES_AVX512_H_

#include "kernels/linear/bytes_x86.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {
namespace {

struct Bytes512 {
  QC_X86_BYTES(_mm512, si512, __m512i)

  using Lanes = Avx512;
  static constexpr int kPerPanel = 1;
  static constexpr int kRegisters = 32;

  template <int kFirst, int kSecond>
  static QC_INLINE Reg both(Reg first, Reg second) {
    constexpr int kChoose =
        0xca;  // the second operand where the first one has ones, else the third
    return and_(_mm512_ternarylogic_epi32(all(kFirst), first, second, kChoose),
                all(kFirst | kSecond));
  }
  static QC_INLINE Reg table(const std::uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static QC_INLINE Reg spread_bytes(Reg x) {
    const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(first));
  }
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_BYTES_AVX512_H_
