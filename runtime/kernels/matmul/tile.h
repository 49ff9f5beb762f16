// What the matrix kernels share: the order in which tiles are taken, and of a tile all but the
// integer products of its groups.
//
// A kernel is a class of one width of weights:
//   kBits
//   Lanes                  its registers: a class in kernels/simd/, a column in each lane
//   panels_for(rows)       how many panels a tile of so many rows takes
//   dot(group, q, dots)    the integer sums of a group, of the rows that begin at q
// Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_MATMUL_TILE_H_
#define QC_KERNELS_MATMUL_TILE_H_

#include <cstdint>

#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

using std::int64_t;

// A group of k in a tile, whose first register of columns is register `first` of panel `panel`.
template <typename Kernel>
struct Group {
  using Lanes = typename Kernel::Lanes;
  using Codes = kernels::Codes<Kernel::kBits>;
  static constexpr int kPerPanel = kPanel / Lanes::kLanes;  // registers

  Group(const Activations& a, const Weights& w, int64_t row, int64_t panel, int first)
      : a(a),
        w(w),
        groups(w.groups()),
        blocks(Codes::blocks(w.k)),
        per_group(w.group_size / Codes::kDepth),
        panel_bytes(blocks * kBlockBytes),
        codes(w.codes + panel * panel_bytes + first * Lanes::kLanes * kQuad),
        first_scale(panel * groups * kPanel + first * Lanes::kLanes),
        starts(a.starts + row * groups),
        x_scales(a.scales + row * a.scale_count) {}

  // Its blocks, of which the last group may have fewer, and where they begin.
  int64_t count() const {
    const int64_t left = blocks - g * per_group;
    return left < per_group ? left : per_group;
  }
  void advance() {
    ++g;
    codes += per_group * kBlockBytes;
    k += per_group * Codes::kDepth;
  }
  // Where register v has its scales and zero points.
  int64_t at(int v) const {
    return first_scale + (v / kPerPanel * groups + g) * kPanel + v % kPerPanel * Lanes::kLanes;
  }
  std::int32_t start(int r) const { return starts[r * groups + g]; }
  float x_scale(int r) const { return x_scales[r * groups + g]; }

  const Activations& a;
  const Weights& w;
  int64_t groups, blocks, per_group;
  int64_t panel_bytes;  // from one panel to the next
  const std::uint8_t* codes;
  int64_t first_scale;
  const std::int32_t* starts;
  const float* x_scales;
  int64_t g = 0, k = 0;
};

// What the integer sums of a group start with.
template <typename Kernel, typename Ints, int kRows, int kVectors>
QC_INLINE void start(const Group<Kernel>& group, Ints (&dots)[kRows][kVectors]) {
  using Lanes = typename Kernel::Lanes;
  if (group.w.zero_points == nullptr) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Ints start = Lanes::set_ints(group.start(r));
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) dots[r][v] = start;
    }
    return;
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    // Zero points are below 2^8 and sums of codes below 2^15.
    const Ints zero = Lanes::load_bytes(group.w.zero_points + group.at(v));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dots[r][v] = Lanes::times(zero, group.start(r));
  }
}

// Scales the integer sums of a group and adds them to those of the groups before.
template <typename Kernel, typename Ints, typename Floats, int kRows, int kVectors>
QC_INLINE void add_group(const Group<Kernel>& group, const Ints (&dots)[kRows][kVectors],
                         Floats (&sums)[kRows][kVectors]) {
  using Lanes = typename Kernel::Lanes;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const Floats scale = Lanes::widen(group.w.scales + group.at(v));
    if (group.a.scale_count == 1) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sums[r][v] = Lanes::fma(Lanes::to_floats(dots[r][v]), scale, sums[r][v]);
      }
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Floats both = Lanes::mul(scale, Lanes::set(group.x_scale(r)));
        sums[r][v] = Lanes::fma(Lanes::to_floats(dots[r][v]), both, sums[r][v]);
      }
    }
  }
}

// Writes sums of rows from `row` and columns from `column` on, but for those from column_end on.
template <typename Lanes, typename Floats, int kRows, int kVectors>
QC_INLINE void write(const Activations& a, const Weights& w, const Tile& t, int64_t row,
                     int64_t column, const Floats (&sums)[kRows][kVectors]) {
  float* out = t.out + (row - t.row_begin) * t.out_stride + column - t.panel_begin * kPanel;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = t.column_end - column - v * Lanes::kLanes;
    if (left <= 0) return;
    const Floats bias =
        w.bias != nullptr ? Lanes::load(w.bias + column + v * Lanes::kLanes, left) : Lanes::zero();
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats row_scale = Lanes::set(a.scale_count == 1 ? a.scales[row + r] : 1.0f);
      Lanes::store(out + r * t.out_stride + v * Lanes::kLanes, left,
                   Lanes::fma(sums[r][v], row_scale, bias));
    }
  }
}

// kRows rows times kVectors registers of columns, over all of K. The integer sums of a group and
// the float sums of all groups stay in registers.
template <typename Kernel, int kRows, int kVectors>
__attribute__((noinline)) void tile(const Activations& a, const Weights& w, const Tile& t,
                                    int64_t row, int64_t panel, int first = 0) {
  using Lanes = typename Kernel::Lanes;
  Group<Kernel> group(a, w, row, panel, first);
  const std::int8_t* q[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    q[r] = a.codes + (row + r) * a.stride;
    // Hides where the pointer came from: GCC would rather recompute all of them for every block.
    __asm__("" : "+r"(q[r]));
  }

  typename Lanes::Vector sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Lanes::zero();
  }
  for (; group.g < group.groups; group.advance()) {
    typename Lanes::Ints dots[kRows][kVectors];
    Kernel::dot(group, q, dots);
    add_group(group, dots, sums);
  }
  write<Lanes>(a, w, t, row, panel * kPanel + first * Lanes::kLanes, sums);
}

// Panels [panel, end) of kRows rows.
template <typename Kernel, int kRows, int kPanels = Kernel::panels_for(kRows)>
void rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
          int64_t end) {
  constexpr int kPerPanel = Group<Kernel>::kPerPanel;
  for (; panel + kPanels <= end; panel += kPanels) {
    tile<Kernel, kRows, kPanels * kPerPanel>(a, w, t, row, panel);
  }
  for (; panel < end; ++panel) tile<Kernel, kRows, kPerPanel>(a, w, t, row, panel);
}

// body(panel, end) for four panels at a time: they stay in L2 while all rows pass over them.
template <typename Body>
QC_INLINE void each_four_panels(const Tile& t, Body body) {
  for (int64_t panel = t.panel_begin; panel < t.panel_end; panel += 4) {
    body(panel, panel + 4 < t.panel_end ? panel + 4 : t.panel_end);
  }
}

// Tiles of kMost rows, and a lower one for the rest.
template <typename Kernel, int kMost>
void all_rows(const Activations& a, const Weights& w, const Tile& t) {
  each_four_panels(t, [&](int64_t panel, int64_t end) {
    int64_t row = t.row_begin;
    for (; row + kMost <= t.row_end; row += kMost) rows<Kernel, kMost>(a, w, t, row, panel, end);
    with_count<kMost - 1>(t.row_end - row, [&](auto count) {
      rows<Kernel, decltype(count)::kValue>(a, w, t, row, panel, end);
    });
  });
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_TILE_H_
