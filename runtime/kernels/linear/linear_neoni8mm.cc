// smmla kernels: 2 columns x 8 k of weights times 8 k x 2 rows of activations gives four sums at
// once. An odd row takes sdot.
#include "kernels/linear/linear_neon.h"

namespace qc::kernels {
namespace {

// Eight values of k of four columns, as smmla takes them: two columns in each register.
struct Eights {
  int8x16_t left, right;

  static QC_INLINE Eights of(const std::uint8_t* quad) {
    const auto first = Bytes128::u32(Bytes128::load(quad));
    const auto second = Bytes128::u32(Bytes128::load(quad + kBlockBytes));
    return {vreinterpretq_s8_u32(vzip1q_u32(first, second)),
            vreinterpretq_s8_u32(vzip2q_u32(first, second))};
  }
};

struct Smmla : Sdot {
  static constexpr int kRows = 4;

  // Strips hold an even number of quads.
  template <int kRowCount, int kVectors>
  static QC_INLINE void multiply(int32x4_t (&sums)[kRowCount][kVectors],
                                 const std::int8_t* const (&q)[kRowCount],
                                 const std::uint8_t* weights, int64_t quads) {
    if constexpr (kRowCount % 2 != 0) {
      Sdot::multiply(sums, q, weights, quads);
    } else {
      constexpr int kPairs = kRowCount / 2;
      int32x4_t left[kPairs][kVectors], right[kPairs][kVectors];  // [column][row]
#pragma GCC unroll 8
      for (int i = 0; i < kPairs * kVectors; ++i) {
        left[i / kVectors][i % kVectors] = right[i / kVectors][i % kVectors] = vdupq_n_s32(0);
      }
      for (int64_t i = 0; i < quads; i += 2) {
        int8x16_t x[kPairs];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) {
          x[p] = vcombine_s8(vld1_s8(q[2 * p] + i * kQuad), vld1_s8(q[2 * p + 1] + i * kQuad));
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Eights w = Eights::of(weights + i * kBlockBytes + v * kTileBytes);
#pragma GCC unroll 4
          for (int p = 0; p < kPairs; ++p) {
            left[p][v] = vmmlaq_s32(left[p][v], w.left, x[p]);
            right[p][v] = vmmlaq_s32(right[p][v], w.right, x[p]);
          }
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[2 * p][v] = vaddq_s32(sums[2 * p][v], vuzp1q_s32(left[p][v], right[p][v]));
          sums[2 * p + 1][v] = vaddq_s32(sums[2 * p + 1][v], vuzp2q_s32(left[p][v], right[p][v]));
        }
      }
    }
  }
};

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  any_rows<Smmla, kForm>(q, w, t);
}

}  // namespace

QC_EACH_FORM(QC_DEFINE_LINEAR, neoni8mm)

}  // namespace qc::kernels
