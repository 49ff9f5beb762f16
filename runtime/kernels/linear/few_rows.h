// Few rows: codes are multiplied as they are, and the multiple of a group by its sum, which is less
// work than expanding weights that hardly anybody shares. Over an ISA as in many_rows.h, and
//   dot(sum, weights, signed)    adds the products of four neighbouring bytes; weights are unsigned
//                                where there is a kOffset, which makes them so
//   panels_for(rows)             how many panels a tile of so many rows takes
// Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_FEW_ROWS_H_
#define QC_KERNELS_LINEAR_FEW_ROWS_H_

#include <cstdint>

#include "kernels/linear/expand.h"
#include "kernels/linear/finish.h"

namespace qc::kernels {
namespace {

// kRows rows times kPanels panels.
template <typename Isa, int kForm, int kRows, int kPanelCount>
class FewRows {
 public:
  using Bytes = typename Isa::Bytes;
  using Lanes = typename Bytes::Lanes;
  using Reg = typename Bytes::Reg;
  using P = Planes<kForm>;

  static constexpr int kPerPanel = Bytes::kPerPanel;
  static constexpr int kVectors = kPanelCount * kPerPanel;
  static constexpr int kBytes = kBlockBytes / kPerPanel;  // of a block, in a register

  // Products take turns on two chains of sums, so that short tiles don't wait for their own. Codes
  // of up to four bits may stay in their half of a byte, each half with a chain of its own, and the
  // sums of the upper one are shifted instead: half of the codes then need no shift, or share one.
  static constexpr int kHalf = 4;
  static constexpr bool kInPlace = Isa::kOffset > 0 && P::kBits <= kHalf && !P::kHasLevels &&
                                   4 * kRows * kVectors < Bytes::kRegisters;
  static constexpr int kChains = kInPlace || 3 * kRows * kVectors < Bytes::kRegisters - 4 ? 2 : 1;

  // Short tiles wait for memory. Long panels are streams side by side, each read ahead of. A tile
  // of short ones is read in one go while the tile before it is multiplied, in order of addresses,
  // so that the processor's own prefetching helps.
  static constexpr bool kPrefetches = kRows * kPanelCount < 6;
  static constexpr int64_t kShortBytes = 1 << 17;
  static constexpr int kIntoL2 = 2;

  FewRows(const QuantizedRows& q, const PlaneWeights& w, int64_t row, int64_t panel)
      : w_(w),
        groups_(w.group_count()),
        panel_bytes_(P::strips(w.k) * P::kStripBytes),
        numbers_(w) {
    strip_ = w.codes + panel * panel_bytes_;
    bytes_ = P::kGrouped ? w.groups + panel * groups_ * kPanel : nullptr;
    const int64_t tile_bytes = kPanelCount * panel_bytes_;
    short_ = tile_bytes <= kShortBytes;
    ahead_ = strip_ + tile_bytes;
    groups_ahead_ = P::kGrouped ? bytes_ + kPanelCount * groups_ * kPanel : nullptr;
    groups_step_ = kPanelCount * kPanel * kStrip / w.group_size;
    for (int r = 0; r < kRows; ++r) {
      q_[r] = q.codes + (row + r) * q.stride;
      // Hides where the pointer came from: GCC would rather recompute all of them for every quad.
      __asm__("" : "+r"(q_[r]));
      sums_[r] = q.sums + (row + r) * groups_;
    }
  }

  QC_INLINE void multiply(Reg (&totals)[kRows][kVectors]) {
    const int64_t strips = P::strips(w_.k);
    if constexpr (!P::kGrouped) {
      Reg dots[kChains][kRows][kVectors];
      clear(dots);
      for (int64_t s = 0; s < strips; ++s) {
        add_quads<0, kQuads>(dots);
        advance();
      }
      for_all([&](int r, int v) {
        totals[r][v] =
            Lanes::add_ints(joined(dots, r, v), Lanes::set_ints(-Isa::kOffset * sums_[r][0]));
      });
    } else {
      for_all([&](int r, int v) { totals[r][v] = Lanes::set_ints(0); });
      if (w_.group_size < kStrip) {
        halves(totals);
      } else {
        wholes(totals, strips);
      }
    }
  }

 private:
  template <typename Body>
  static QC_INLINE void for_all(Body body) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) body(r, v);
    }
  }

  static QC_INLINE void clear(Reg (&dots)[kChains][kRows][kVectors]) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      for_all([&](int r, int v) { dots[c][r][v] = Lanes::set_ints(0); });
    }
  }

  static QC_INLINE Reg joined(const Reg (&dots)[kChains][kRows][kVectors], int r, int v) {
    Reg sum = dots[0][r][v];
    each_quad<1, kChains>([&](auto chain) {
      constexpr int kChain = decltype(chain)::kValue;
      const Reg more = dots[kChain][r][v];
      sum =
          Lanes::add_ints(sum, kInPlace ? Bytes::template right_ints<kChain * kHalf>(more) : more);
    });
    return sum;
  }

  // The chain that quad `i` of a strip is summed on.
  static constexpr int chain(int i) {
    return kInPlace ? P::shift(P::kLow, i) / kHalf : i % kChains;
  }

  // What quad kIndex of a strip holds in one register.
  template <int kIndex>
  QC_INLINE Reg load(const std::uint8_t* strip) const {
    if constexpr (!P::kGrouped) {
      return Bytes::xor_(Bytes::load(strip + kIndex * kBlockBytes), Bytes::all(Isa::kOffset));
    } else if constexpr (kInPlace) {
      return quad_codes<Bytes, kForm, kIndex, chain(kIndex) * kHalf>(strip);
    } else {
      return numbers_.template quad<kIndex>(strip);
    }
  }

  template <int kBegin, int kEnd>
  QC_INLINE void add_quads(Reg (&dots)[kChains][kRows][kVectors]) const {
    each_quad<kBegin, kEnd>([&](auto quad) {
      constexpr int kIndex = decltype(quad)::kValue;
      Reg codes[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        codes[v] = load<kIndex>(strip_ + v / kPerPanel * panel_bytes_ + v % kPerPanel * kBytes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Reg x = Bytes::quad(q_[r] + kIndex * kQuad);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) Isa::dot(dots[chain(kIndex)][r][v], codes[v], x);
      }
    });
  }

  QC_INLINE void advance() {
    if constexpr (kPrefetches) {
      if (short_) {
#pragma GCC unroll 32
        for (int i = 0; i < kPanelCount * P::kBits; ++i) {
          __builtin_prefetch(ahead_ + i * kBlockBytes, 0, kIntoL2);
        }
        if constexpr (P::kGrouped) {
          __builtin_prefetch(groups_ahead_, 0, kIntoL2);
          __builtin_prefetch(groups_ahead_ + kBlockBytes, 0, kIntoL2);
          groups_ahead_ += groups_step_;
        }
        ahead_ += kPanelCount * P::kStripBytes;
      } else {
#pragma GCC unroll 4
        for (int p = 0; p < kPanelCount; ++p) {
          const std::uint8_t* ahead = strip_ + p * panel_bytes_;
#pragma GCC unroll 8
          for (int b = 0; b < P::kBits; ++b) {
            __builtin_prefetch(ahead + Isa::kPrefetchBytes + b * kBlockBytes);
          }
        }
      }
    }
    strip_ += P::kStripBytes;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) q_[r] += kStrip;
  }

  // totals += multiple * (sum of numbers - zero point * sum of activations), where `add` adds the
  // products of numbers to sums that begin with the rest.
  template <typename Add>
  QC_INLINE void add_group(Reg (&totals)[kRows][kVectors], int64_t g, Add add) {
    Reg dots[kChains][kRows][kVectors], multiples[kVectors];
    clear(dots);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Factors<Bytes, kForm> factors(
          bytes_ + (v / kPerPanel * groups_ + g) * kPanel + v % kPerPanel * Lanes::kLanes,
          numbers_);
      multiples[v] = factors.multiples;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dots[0][r][v] = Lanes::times(factors.zero_points, -sums_[r][g]);
      }
    }
    add(dots);
    for_all([&](int r, int v) {
      const Reg dot = joined(dots, r, v);
      totals[r][v] = Lanes::add_ints(totals[r][v], Bytes::times_ints(multiples[v], dot));
    });
  }

  QC_INLINE void wholes(Reg (&totals)[kRows][kVectors], int64_t strips) {
    const int64_t per_group = w_.group_size / kStrip;
    for (int64_t g = 0, s = 0; g < groups_; ++g) {
      const int64_t end = s + per_group < strips ? s + per_group : strips;
      add_group(totals, g, [&](auto& dots) {
        for (; s < end; ++s) {
          add_quads<0, kQuads>(dots);
          advance();
        }
      });
    }
  }

  // Two groups a strip; the last strip may have one.
  QC_INLINE void halves(Reg (&totals)[kRows][kVectors]) {
    for (int64_t g = 0; g < groups_; g += 2) {
      add_group(totals, g, [&](auto& dots) { add_quads<0, kQuads / 2>(dots); });
      if (g + 1 == groups_) return;
      add_group(totals, g + 1, [&](auto& dots) { add_quads<kQuads / 2, kQuads>(dots); });
      advance();
    }
  }

  const PlaneWeights& w_;
  int64_t groups_, panel_bytes_, groups_step_;
  bool short_;
  const std::uint8_t* strip_;
  const std::uint8_t* bytes_;
  const std::uint8_t *ahead_, *groups_ahead_;  // in the tile behind this one
  const std::int8_t* q_[kRows];
  const std::int32_t* sums_[kRows];
  const Numbers<Bytes, kForm> numbers_;
};

template <typename Isa, int kForm, int kRows, int kPanelCount>
__attribute__((noinline)) void few_rows_tile(const QuantizedRows& q, const PlaneWeights& w,
                                             const Tile& t, int64_t row, int64_t panel) {
  using Few = FewRows<Isa, kForm, kRows, kPanelCount>;
  typename Few::Reg totals[kRows][Few::kVectors];
  Few(q, w, row, panel).multiply(totals);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Few::kVectors; ++v) {
      finish<typename Few::Lanes>(q, w, t, row + r, panel * kPanel + v * Few::Lanes::kLanes,
                                  totals[r][v]);
    }
  }
}

// All panels of at most kMost rows.
template <typename Isa, int kForm, int kMost>
void few_rows(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  with_count<kMost>(t.row_end - t.row_begin, [&](auto count) {
    constexpr int kRows = decltype(count)::kValue;
    constexpr int kAtOnce = Isa::panels_for(kRows);
    int64_t panel = t.panel_begin;
    for (; panel + kAtOnce <= t.panel_end; panel += kAtOnce) {
      few_rows_tile<Isa, kForm, kRows, kAtOnce>(q, w, t, t.row_begin, panel);
    }
    for (; kAtOnce > 1 && panel < t.panel_end; ++panel) {
      few_rows_tile<Isa, kForm, kRows, 1>(q, w, t, t.row_begin, panel);
    }
  });
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_FEW_ROWS_H_
