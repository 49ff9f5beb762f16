// sdot kernels. Both its operands are signed: codes of 4 bits fit as they are; codes of 8 bits
// enter as code - 128, and 128 times the sum of the activations makes up for it.
#include "kernels/matmul/matmul_neon.h"

namespace qc::kernels {
namespace {

constexpr int kOffset = Codes<8>::kMiddle;

template <int kBits>
QC_INLINE int8x16_t to_signed(uint8x16_t codes) {
  return vreinterpretq_s8_u8(kBits == 4 ? codes : veorq_u8(codes, vdupq_n_u8(kOffset)));
}

// kOffset times the sum of `depth` activations, a multiple of four.
std::int32_t offset_sum(const std::int8_t* q, int64_t depth) {
  int32x2_t sums = vdup_n_s32(0);
  for (int64_t k = 0; k < depth; k += kStep) {
    sums = vdot_s32(sums, load_row(q + k, depth - k < kStep), vdup_n_s8(-kOffset));
  }
  return -vaddv_s32(sums);
}

template <int kWidth>
struct Sdot {
  static constexpr int kBits = kWidth;
  using Lanes = Neon;
  static constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  template <int kRows, int kVectors>
  static QC_INLINE void dot(const Group<Sdot>& group, const std::int8_t* const (&q)[kRows],
                            int32x4_t (&dots)[kRows][kVectors]) {
    const bool apart = group.w.zero_points != nullptr;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      // With zero points `start` is minus the sum of the activations.
      const std::int32_t start = group.start(r);
      std::int32_t offset = apart ? 0 : start;
      if (kBits == 8) {
        const int64_t depth = group.count() * Codes<kBits>::kDepth;
        offset += apart ? -kOffset * start : offset_sum(q[r] + group.k, depth);
      }
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) dots[r][v] = vdupq_n_s32(offset);
    }
    each_step(group, [&](const std::uint8_t* codes, int64_t k, bool half) {
      int8x8_t x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = load_row(q[r] + k, half);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const Quads quads = load_quads<kBits>(codes, group.panel_bytes, v, half, kRows < 4);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          dots[r][v] = vdotq_lane_s32(dots[r][v], to_signed<kBits>(quads.low), x[r], 0);
          dots[r][v] = vdotq_lane_s32(dots[r][v], to_signed<kBits>(quads.high), x[r], 1);
        }
      }
    });
    if (apart) add_starts(group, dots);
  }
};

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  all_rows<Sdot<kBits>, 4>(a, w, t);
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, neondotprod)

}  // namespace qc::kernels
