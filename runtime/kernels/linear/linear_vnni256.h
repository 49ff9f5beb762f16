// vpdpbusd kernels on 256-bit registers. The files that include this differ in their flags, and so
// in the encoding of the instruction. Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_LINEAR_VNNI256_H_
#define QC_KERNELS_LINEAR_LINEAR_VNNI256_H_

#include "kernels/linear/bytes_avx2.h"
#include "kernels/linear/many_rows.h"

namespace qc::kernels {
namespace {

struct Vnni256 {
  using Bytes = Bytes256;
  static constexpr int kOffset = 128;
  static constexpr int kRows = 6, kVectors = 2;
  static constexpr int kPrefetchBytes = 2048;
  static constexpr int panels_for(int rows) { return rows == 1 ? 2 : 1; }

  // In assembly so that the sum is updated in place: see linear_avx512vnni.cc.
  static QC_INLINE void dot(__m256i& sum, __m256i unsigned_quads, __m256i signed_quads) {
    __m256i own = sum;
#ifdef __AVXVNNI__
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(own) : "x"(unsigned_quads), "x"(signed_quads));
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(own) : "v"(unsigned_quads), "v"(signed_quads));
#endif
    sum = own;
  }

  template <int kRows, int kVectors>
  static QC_INLINE void multiply(__m256i (&sums)[kRows][kVectors],
                                 const std::int8_t* const (&q)[kRows], const std::uint8_t* weights,
                                 int64_t quads) {
    constexpr int kBytes = kBlockBytes / Bytes::kPerPanel;
    for (int64_t i = 0; i < quads; ++i) {
      __m256i w[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) w[v] = Bytes::load(weights + i * kBlockBytes + v * kBytes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = Bytes::quad(q[r] + i * kQuad);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) dot(sums[r][v], w[v], x);
      }
    }
  }
};

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  any_rows<Vnni256, kForm>(q, w, t);
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_LINEAR_VNNI256_H_
