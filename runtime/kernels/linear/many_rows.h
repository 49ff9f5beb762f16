// Many rows: some panels of weights are expanded to int8 once, and all rows pass over them. The
// integer core is the ISA's:
//   Bytes                    its registers, see bytes_avx2.h
//   kOffset                  what expanded weights are too large by
//   kRows, kVectors          of its tile: rows, and registers of columns, a whole number of panels
//   multiply(sums, ..)       adds the products of some quads
// Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_MANY_ROWS_H_
#define QC_KERNELS_LINEAR_MANY_ROWS_H_

#include <cstdint>

#include "kernels/linear/expand.h"
#include "kernels/linear/few_rows.h"
#include "kernels/linear/finish.h"
#include "kernels/linear/scratch.h"

namespace qc::kernels {
namespace {

constexpr int64_t kRowBlock = 256;  // rows that use expanded weights

struct alignas(64) Expanded {
  std::uint8_t weights[kPanels][kChunk * kPanel];
  std::int32_t sums[kRowBlock][kPanels * kPanel];
  std::int32_t starts[kRowBlock];
};

// A part of the matrix: panels [panel, panel + panels), strips [first, last).
struct Chunk {
  int64_t panel, panels;
  int64_t first, last;
  bool ends;  // with K
};

// kRows rows from `row` on, of the block that begins at `block`, times some panels of a chunk.
template <typename Isa, int kRows, int kVectors>
__attribute__((noinline)) void tile(const QuantizedRows& q, const PlaneWeights& w, const Tile& t,
                                    const Chunk& c, int64_t block, int64_t row, int64_t first_panel,
                                    Expanded& s) {
  using Bytes = typename Isa::Bytes;
  using Lanes = typename Bytes::Lanes;
  constexpr int kPerPanel = Bytes::kPerPanel;
  typename Bytes::Reg sums[kRows][kVectors];
  std::int32_t* kept[kRows];
  const std::int8_t* codes[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    kept[r] = s.sums[row + r - block] + first_panel * kPanel;
    codes[r] = q.codes + (row + r) * q.stride + c.first * kStrip;
    // Hides where the pointer came from: GCC would rather recompute all of them for every quad.
    __asm__("" : "+r"(codes[r]));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = c.first == 0 ? Lanes::set_ints(s.starts[row + r - block])
                                : Bytes::load_ints(kept[r] + v * Lanes::kLanes);
    }
  }
  Isa::multiply(sums, codes, s.weights[first_panel], (c.last - c.first) * kQuads);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      if (c.ends) {
        const int64_t column = (c.panel + first_panel) * kPanel + v * Lanes::kLanes;
        finish<Lanes>(q, w, t, row + r, column, sums[r][v]);
      } else {
        Bytes::store_ints(kept[r] + v * Lanes::kLanes, sums[r][v]);
      }
    }
  }
  static_assert(kVectors % kPerPanel == 0, "a part of a panel");
}

// A chunk times kRows rows.
template <typename Isa, int kRows>
void tiles(const QuantizedRows& q, const PlaneWeights& w, const Tile& t, const Chunk& c,
           int64_t block, int64_t row, Expanded& s) {
  constexpr int kAtOnce = Isa::kVectors / Isa::Bytes::kPerPanel;  // panels
  int64_t p = 0;
  for (; p + kAtOnce <= c.panels; p += kAtOnce) {
    tile<Isa, kRows, Isa::kVectors>(q, w, t, c, block, row, p, s);
  }
  for (; p < c.panels; ++p) {
    tile<Isa, kRows, Isa::Bytes::kPerPanel>(q, w, t, c, block, row, p, s);
  }
}

template <typename Isa, int kForm>
void block_of_rows(const QuantizedRows& q, const PlaneWeights& w, const Tile& t, int64_t begin,
                   int64_t end, Expanded& s) {
  for (int64_t row = begin; row < end; ++row) {
    s.starts[row - begin] = -Isa::kOffset * row_sum(q, w, row);
  }
  const int64_t strips = Planes<kForm>::strips(w.k);
  for (int64_t panel = t.panel_begin; panel < t.panel_end; panel += kPanels) {
    const int64_t left = t.panel_end - panel;
    const int64_t panels = left < kPanels ? left : kPanels;
    for (int64_t first = 0; first < strips; first += kChunk / kStrip) {
      const int64_t stop = first + kChunk / kStrip;
      const Chunk c{panel, panels, first, stop < strips ? stop : strips, stop >= strips};
      for (int64_t p = 0; p < panels; ++p) {
        expand<typename Isa::Bytes, kForm, Isa::kOffset>(w, panel + p, c.first, c.last,
                                                         s.weights[p]);
      }
      for (int64_t row = begin; row < end;) {
        // What is left beyond whole tiles is two of nearly the same height.
        const int64_t rest = end - row;
        const int64_t rows = rest >= 2 * Isa::kRows ? Isa::kRows
                             : rest > Isa::kRows    ? (rest + 1) / 2
                                                    : rest;
        with_count<Isa::kRows>(rows, [&](auto count) {
          tiles<Isa, decltype(count)::kValue>(q, w, t, c, begin, row, s);
        });
        row += rows;
      }
    }
  }
}

template <typename Isa, int kForm>
void many_rows(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  Expanded& s = scratch<Expanded>();
  for (int64_t row = t.row_begin; row < t.row_end; row += kRowBlock) {
    const int64_t end = row + kRowBlock < t.row_end ? row + kRowBlock : t.row_end;
    block_of_rows<Isa, kForm>(q, w, t, row, end, s);
  }
}

// The few rows that are better off without expanded weights, or many.
template <typename Isa, int kForm>
void any_rows(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  constexpr int kFew = 2;
  if (t.row_end - t.row_begin <= kFew) {
    few_rows<Isa, kForm, kFew>(q, w, t);
  } else {
    many_rows<Isa, kForm>(q, w, t);
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_MANY_ROWS_H_
