// A whole panel in one 512-bit register: what the kernels on such registers share. Internal linkage
// throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_MATMUL_WHOLE_PANEL_H_
#define QC_KERNELS_MATMUL_WHOLE_PANEL_H_

#include <immintrin.h>

#include "kernels/layout.h"

namespace qc::kernels {
namespace {

// Quad `i` of each column of a block. Where kInPlace the later ones of 4 bits are left in the high
// nibbles: 16 times what they are.
template <int kBits, bool kInPlace = false>
QC_INLINE __m512i unpack(__m512i packed, int i) {
  static_assert(kBits == 4 || kBits == 8, "no way to unpack this width");
  if (kBits == 8) return packed;
  const __m512i low_bits = _mm512_set1_epi8(15);
  if (i == 0) return _mm512_and_si512(packed, low_bits);
  if (kInPlace) return _mm512_andnot_si512(low_bits, packed);
  return _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_bits);
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_WHOLE_PANEL_H_
