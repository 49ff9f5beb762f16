// usmmla kernels: 2 columns x 8 k of unsigned weights times 8 k x 2 rows of signed activations
// gives four sums at once. A row alone takes usdot.
#include "kernels/matmul/matmul_neon.h"

namespace qc::kernels {
namespace {

// 8 k of two rows.
int8x16_t load_pair(const std::int8_t* q, int64_t stride, bool half) {
  return vcombine_s8(load_row(q, half), load_row(q + stride, half));
}

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

// Adds the products of one step to kPairs pairs of rows (or, kRows = 1, single ones).
template <int kBits, int kRows, int kPairs, int kVectorCount>
inline __attribute__((always_inline)) void add_step(Sums<kRows> (&dots)[kPairs][kVectorCount],
                                                    const std::uint8_t* codes, int64_t panel_bytes,
                                                    const std::int8_t* q, int64_t stride,
                                                    bool half) {
  int8x16_t x[kPairs];
#pragma GCC unroll 4
  for (int p = 0; p < kPairs; ++p) {
    // A row alone is its own partner, which nothing reads.
    x[p] = load_pair(q + p * kRows * stride, kRows == 2 ? stride : 0, half);
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectorCount; ++v) {
    const std::uint8_t* at = codes + v / kVectors * panel_bytes + v % kVectors * 16;
    if (kPairs == 1 && v % kVectors == 0) __builtin_prefetch(at + kPrefetchBytes);
    const Quads quads = load_quads<kBits>(at, half);
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) dots[p][v].add(quads, x[p]);
  }
}

// kPairs pairs of rows x kVectorCount registers of four columns, from `first_vector` of the panel
// on, over all of K.
template <int kBits, int kRows, int kPairs, int kVectorCount>
void tile(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
          int first_vector) {
  const Extent<kBits> extent(w);
  const std::uint8_t* codes = w.codes + panel * extent.panel_bytes + first_vector * 16;
  const std::int8_t* q = a.codes + row * a.stride;

  float32x4_t sums[kPairs * kRows][kVectorCount];
#pragma GCC unroll 8
  for (int r = 0; r < kPairs * kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectorCount; ++v) sums[r][v] = vdupq_n_f32(0.0f);
  }

  for (int64_t g = 0; g < extent.groups; ++g) {
    Sums<kRows> dots[kPairs][kVectorCount];
    const int64_t depth = extent.depth(g);
    int64_t k = 0;
    for (; k + kStep <= depth; k += kStep) {
      add_step<kBits>(dots, codes, extent.panel_bytes, q, a.stride, false);
      codes += Extent<kBits>::kStepBytes;
      q += kStep;
    }
    if (kBits == 8 && k < depth) {
      add_step<kBits>(dots, codes, extent.panel_bytes, q, a.stride, true);
    }

#pragma GCC unroll 16
    for (int v = 0; v < kVectorCount; ++v) {
      const int64_t at = ((panel + v / kVectors) * extent.groups + g) * kPanel;
      const int64_t first = at + (first_vector + v % kVectors) * kLanes;
      const float32x4_t scale = load_scales(w.scales + first);
      const int32x4_t zero =
          w.zero_points != nullptr ? load_zero_points(w.zero_points + first) : vdupq_n_s32(1);
#pragma GCC unroll 8
      for (int r = 0; r < kPairs * kRows; ++r) {
        const int64_t entry = (row + r) * extent.groups + g;
        const int32x4_t dot = vmlaq_n_s32(dots[r / kRows][v].row(r % kRows), zero, a.starts[entry]);
        const float x_scale = a.scale_count == 1 ? 1.0f : a.scales[entry];
        sums[r][v] = vfmaq_f32(sums[r][v], vcvtq_f32_s32(dot), vmulq_n_f32(scale, x_scale));
      }
    }
  }

#pragma GCC unroll 8
  for (int r = 0; r < kPairs * kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectorCount; ++v) {
      store(a, w, t, row + r, panel * kPanel + (first_vector + v) * kLanes, sums[r][v]);
    }
  }
}

// Four panels at a time stay in L2 while all rows pass over them.
template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  constexpr int kHalf = kVectors / 2;  // of a panel: with 8 rows there are registers for no more
  for (int64_t begin = t.panel_begin; begin < t.panel_end; begin += 4) {
    const int64_t end = begin + 4 < t.panel_end ? begin + 4 : t.panel_end;
    int64_t row = t.row_begin;
    for (; row + 8 <= t.row_end; row += 8) {
      for (int64_t panel = begin; panel < end; ++panel) {
        tile<kBits, 2, 4, kHalf>(a, w, t, row, panel, 0);
        tile<kBits, 2, 4, kHalf>(a, w, t, row, panel, kHalf);
      }
    }
    for (; row + 4 <= t.row_end; row += 4) {
      for (int64_t panel = begin; panel < end; ++panel) {
        tile<kBits, 2, 2, kVectors>(a, w, t, row, panel, 0);
      }
    }
    for (; row + 2 <= t.row_end; row += 2) {
      for (int64_t panel = begin; panel < end; ++panel) {
        tile<kBits, 2, 1, kVectors>(a, w, t, row, panel, 0);
      }
    }
    if (row == t.row_end) continue;
    int64_t panel = begin;
    for (; panel + 4 <= end; panel += 4) tile<kBits, 1, 1, 4 * kVectors>(a, w, t, row, panel, 0);
    for (; panel < end; ++panel) tile<kBits, 1, 1, kVectors>(a, w, t, row, panel, 0);
  }
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, neoni8mm)

}  // namespace qc::kernels
