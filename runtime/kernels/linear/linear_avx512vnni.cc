// vpdpbusd kernels on 512-bit registers. Everything but the entry points has internal linkage, and
// no header with inline functions that are not QC_INLINE is included: an AVX-512 copy of a shared
// inline function must not reach the linker, which could pick it for every caller.
#include "kernels/linear/bytes_avx512.h"
#include "kernels/linear/many_rows.h"

namespace qc::kernels {
namespace {

struct Vnni512 {
  using Bytes = Bytes512;
  static constexpr int kOffset = 128;
  static constexpr int kRows = 6, kVectors = 4;
  static constexpr int kPrefetchBytes = 2048;
  static constexpr int panels_for(int rows) { return rows == 1 ? 4 : 2; }

  // In assembly so that the sum is updated in place: from intrinsics GCC copies sums about until it
  // has to spill them. Of its own, because GCC keeps in memory what assembly changes by reference.
  static QC_INLINE void dot(__m512i& sum, __m512i unsigned_quads, __m512i signed_quads) {
    __m512i own = sum;
    __asm__("vpdpbusd %2, %1, %0" : "+v"(own) : "v"(unsigned_quads), "v"(signed_quads));
    sum = own;
  }

  template <int kRows, int kVectors>
  static QC_INLINE void multiply(__m512i (&sums)[kRows][kVectors],
                                 const std::int8_t* const (&q)[kRows], const std::uint8_t* weights,
                                 int64_t quads) {
    for (int64_t i = 0; i < quads; ++i) {
      __m512i w[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        w[v] = Bytes::load(weights + v * kChunk * kPanel + i * kBlockBytes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i x = Bytes::quad(q[r] + i * kQuad);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) dot(sums[r][v], w[v], x);
      }
    }
  }
};

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  any_rows<Vnni512, kForm>(q, w, t);
}

}  // namespace

QC_EACH_FORM(QC_DEFINE_LINEAR, avx512vnni)

}  // namespace qc::kernels
