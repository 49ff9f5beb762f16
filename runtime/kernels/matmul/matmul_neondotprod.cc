// sdot kernels. Both its operands are signed: codes of 4 bits fit as they are; codes of 8 bits
// enter as code - 128, and 128 times the sum of the activations makes up for it.
#include "kernels/matmul/matmul_neon.h"

namespace qc::kernels {
namespace {

constexpr int kOffset = 128;

template <int kBits>
int8x16_t to_signed(uint8x16_t codes) {
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

// Adds the products of one step to kRows x kPanels panels.
template <int kBits, int kRows, int kPanels>
inline __attribute__((always_inline)) void add_step(int32x4_t (&dots)[kRows][kPanels * kVectors],
                                                    const std::uint8_t* codes, int64_t panel_bytes,
                                                    const std::int8_t* q, int64_t stride,
                                                    bool half) {
  int8x8_t x[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) x[r] = load_row(q + r * stride, half);
#pragma GCC unroll 16
  for (int v = 0; v < kPanels * kVectors; ++v) {
    const std::uint8_t* at = codes + v / kVectors * panel_bytes + v % kVectors * 16;
    if (kRows < 4 && v % kVectors == 0) __builtin_prefetch(at + kPrefetchBytes);
    const Quads quads = load_quads<kBits>(at, half);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      dots[r][v] = vdotq_lane_s32(dots[r][v], to_signed<kBits>(quads.low), x[r], 0);
      dots[r][v] = vdotq_lane_s32(dots[r][v], to_signed<kBits>(quads.high), x[r], 1);
    }
  }
}

// kRows x kPanels panels, over all of K.
template <int kBits, int kRows, int kPanels>
void tile(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel) {
  constexpr int kSums = kPanels * kVectors;
  const Extent<kBits> extent(w);
  const std::uint8_t* codes = w.codes + panel * extent.panel_bytes;
  const std::int8_t* q = a.codes + row * a.stride;

  float32x4_t sums[kRows][kSums];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kSums; ++v) sums[r][v] = vdupq_n_f32(0.0f);
  }

  for (int64_t g = 0; g < extent.groups; ++g) {
    const int64_t depth = extent.depth(g);
    int32x4_t dots[kRows][kSums];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const std::int32_t start = a.starts[(row + r) * extent.groups + g];
      // With zero points `start` is minus the sum of the activations.
      std::int32_t offset = w.zero_points != nullptr ? 0 : start;
      if (kBits == 8) {
        offset += w.zero_points != nullptr ? -kOffset * start : offset_sum(q + r * a.stride, depth);
      }
#pragma GCC unroll 16
      for (int v = 0; v < kSums; ++v) dots[r][v] = vdupq_n_s32(offset);
    }

    int64_t k = 0;
    for (; k + kStep <= depth; k += kStep) {
      add_step<kBits, kRows, kPanels>(dots, codes, extent.panel_bytes, q, a.stride, false);
      codes += Extent<kBits>::kStepBytes;
      q += kStep;
    }
    if (kBits == 8 && k < depth) {
      add_step<kBits, kRows, kPanels>(dots, codes, extent.panel_bytes, q, a.stride, true);
    }

#pragma GCC unroll 16
    for (int v = 0; v < kSums; ++v) {
      const int64_t at = ((panel + v / kVectors) * extent.groups + g) * kPanel;
      const int64_t first = at + v % kVectors * kLanes;
      const float32x4_t scale = load_scales(w.scales + first);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int64_t entry = (row + r) * extent.groups + g;
        int32x4_t dot = dots[r][v];
        if (w.zero_points != nullptr) {
          dot = vmlaq_n_s32(dot, load_zero_points(w.zero_points + first), a.starts[entry]);
        }
        const float x_scale = a.scale_count == 1 ? 1.0f : a.scales[entry];
        sums[r][v] = vfmaq_f32(sums[r][v], vcvtq_f32_s32(dot), vmulq_n_f32(scale, x_scale));
      }
    }
  }

#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kSums; ++v) {
      store(a, w, t, row + r, panel * kPanel + v * kLanes, sums[r][v]);
    }
  }
}

template <int kBits, int kRows, int kPanels>
void rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
          int64_t panel_end) {
  for (; panel + kPanels <= panel_end; panel += kPanels) {
    tile<kBits, kRows, kPanels>(a, w, t, row, panel);
  }
  for (; panel < panel_end; ++panel) tile<kBits, kRows, 1>(a, w, t, row, panel);
}

// Four panels at a time stay in L2 while all rows pass over them.
template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  for (int64_t panel = t.panel_begin; panel < t.panel_end; panel += 4) {
    const int64_t end = panel + 4 < t.panel_end ? panel + 4 : t.panel_end;
    int64_t row = t.row_begin;
    for (; row + 4 <= t.row_end; row += 4) rows<kBits, 4, 1>(a, w, t, row, panel, end);
    switch (t.row_end - row) {
      case 1:
        rows<kBits, 1, 4>(a, w, t, row, panel, end);
        break;
      case 2:
        rows<kBits, 2, 2>(a, w, t, row, panel, end);
        break;
      case 3:
        rows<kBits, 3, 1>(a, w, t, row, panel, end);
        break;
      default:
        break;
    }
  }
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, neondotprod)

}  // namespace qc::kernels
