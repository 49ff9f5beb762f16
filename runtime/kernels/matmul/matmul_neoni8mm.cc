// usmmla kernels: 2 columns x 8 k of unsigned weights times 8 k x 2 rows of signed activations
// gives four sums at once. A row alone takes usdot.
#include "kernels/matmul/matmul_neon.h"

namespace qc::kernels {
namespace {

// The sums of four columns, as usmmla or usdot leave them.
template <int kRows>
struct Sums;

template <>
struct Sums<2> {
  int32x4_t left = vdupq_n_s32(0), right = vdupq_n_s32(0);  // [column][row]

  void add(const Quads& w, int8x16_t x) {
    const auto low = vreinterpretq_u32_u8(w.low);
    const auto high = vreinterpretq_u32_u8(w.high);
    left = vusmmlaq_s32(left, vreinterpretq_u8_u32(vzip1q_u32(low, high)), x);
    right = vusmmlaq_s32(right, vreinterpretq_u8_u32(vzip2q_u32(low, high)), x);
  }
  int32x4_t row(int r) const { return r == 0 ? vuzp1q_s32(left, right) : vuzp2q_s32(left, right); }
};

template <>
struct Sums<1> {
  int32x4_t columns = vdupq_n_s32(0);

  void add(const Quads& w, int8x16_t x) {
    columns = vusdotq_laneq_s32(columns, w.low, x, 0);
    columns = vusdotq_laneq_s32(columns, w.high, x, 1);
  }
  int32x4_t row(int) const { return columns; }
};

template <int kWidth>
struct Usmmla {
  static constexpr int kBits = kWidth;
  using Lanes = Neon;

  // Rows come in pairs, or alone. A row alone is its own partner, which nothing reads.
  template <int kRows, int kVectors>
  static QC_INLINE void dot(const Group<Usmmla>& group, const std::int8_t* const (&q)[kRows],
                            int32x4_t (&dots)[kRows][kVectors]) {
    constexpr int kTogether = kRows == 1 ? 1 : 2;
    constexpr int kPairs = kRows / kTogether;
    Sums<kTogether> sums[kPairs][kVectors];
    each_step(group, [&](const std::uint8_t* codes, int64_t k, bool half) {
      int8x16_t x[kPairs];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        const std::int8_t* last = q[p * kTogether + kTogether - 1];
        x[p] = vcombine_s8(load_row(q[p * kTogether] + k, half), load_row(last + k, half));
      }
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const Quads quads = load_quads<kBits>(codes, group.panel_bytes, v, half, kPairs == 1);
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) sums[p][v].add(quads, x[p]);
      }
    });
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) dots[r][v] = sums[r / kTogether][v].row(r % kTogether);
    }
    add_starts(group, dots);
  }
};

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  using Kernel = Usmmla<kBits>;
  constexpr int kHalf = kVectors / 2;  // of a panel: with 8 rows there are registers for no more
  each_four_panels(t, [&](int64_t begin, int64_t end) {
    int64_t row = t.row_begin;
    for (; row + 8 <= t.row_end; row += 8) {
      for (int64_t panel = begin; panel < end; ++panel) {
        tile<Kernel, 8, kHalf>(a, w, t, row, panel);
        tile<Kernel, 8, kHalf>(a, w, t, row, panel, kHalf);
      }
    }
    for (; row + 4 <= t.row_end; row += 4) rows<Kernel, 4, 1>(a, w, t, row, begin, end);
    for (; row + 2 <= t.row_end; row += 2) rows<Kernel, 2, 1>(a, w, t, row, begin, end);
    if (row < t.row_end) rows<Kernel, 1, 4>(a, w, t, row, begin, end);
  });
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, neoni8mm)

}  // namespace qc::kernels
