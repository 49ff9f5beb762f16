// sdot kernels, which those of smmla share for few rows. Both operands are signed, so weights need
// no offset. Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_LINEAR_NEON_H_
#define QC_KERNELS_LINEAR_LINEAR_NEON_H_

#include "kernels/linear/bytes_neon.h"
#include "kernels/linear/many_rows.h"

namespace qc::kernels {
namespace {

struct Sdot {
  using Bytes = Bytes128;
  static constexpr int kOffset = 0;
  static constexpr int kRows = 6, kVectors = 4;
  static constexpr int kPrefetchBytes = 1024;
  static constexpr int panels_for(int rows) { return rows == 1 ? 2 : 1; }

  static QC_INLINE void dot(int32x4_t& sum, int32x4_t weights, int32x4_t codes) {
    sum = vdotq_s32(sum, Bytes::s8(weights), Bytes::s8(codes));
  }

  template <int kRows, int kVectors>
  static QC_INLINE void multiply(int32x4_t (&sums)[kRows][kVectors],
                                 const std::int8_t* const (&q)[kRows], const std::uint8_t* weights,
                                 int64_t quads) {
    for (int64_t i = 0; i < quads; ++i) {
      const std::uint8_t* block = weights + i * kBlockBytes;
      int32x4_t w[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) w[v] = Bytes::load(block + v * kTileBytes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const int32x4_t x = Bytes::quad(q[r] + i * kQuad);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) dot(sums[r][v], w[v], x);
      }
    }
  }

  static constexpr int kTileBytes = kBlockBytes / Bytes::kPerPanel;  // of a block, in a register
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_LINEAR_NEON_H_
