// vpmaddubsw kernels. Codes of 2 to 6 bits are multiplied as they are: products of a group add up
// in int16, and the vpmaddwd that widens them multiplies them by the group's multiple, for nothing.
// Weights of 8 bits are multiplied by magnitude, with their signs moved to the activations.
#include "kernels/linear/bytes_avx2.h"
#include "kernels/linear/expand.h"
#include "kernels/linear/finish.h"

namespace qc::kernels {
namespace {

constexpr int64_t kPrefetchBytes = 2048;

// Products of unsigned and signed bytes, added in pairs: the first of a sum, or more for it. In
// assembly so that a sum is updated in place: GCC adds up products first, and runs out of
// registers.
template <bool kFirst>
QC_INLINE void add_products(__m256i& sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  if (kFirst) {
    __asm__("vpmaddubsw %2, %1, %0" : "=x"(sum) : "x"(unsigned_bytes), "x"(signed_bytes));
    return;
  }
  __m256i products;
  __asm__(
      "vpmaddubsw %3, %2, %1\n\t"
      "vpaddw %1, %0, %0"
      : "+x"(sum), "=&x"(products)
      : "x"(unsigned_bytes), "x"(signed_bytes));
}

// Products of signed words, added in pairs to a total, or taken from it. In assembly for the same
// reason.
QC_INLINE void add_words(__m256i& total, __m256i a, __m256i b) {
  __m256i products;
  __asm__(
      "vpmaddwd %3, %2, %1\n\t"
      "vpaddd %1, %0, %0"
      : "+x"(total), "=&x"(products)
      : "x"(a), "x"(b));
}

QC_INLINE void take_words(__m256i& total, __m256i a, __m256i b) {
  __m256i products;
  __asm__(
      "vpmaddwd %3, %2, %1\n\t"
      "vpsubd %1, %0, %0"
      : "+x"(total), "=&x"(products)
      : "x"(a), "x"(b));
}

// Quads whose pairs of products fit into int16 together: 2 * 127 * the largest number each.
constexpr int quads_in_word(int largest) {
  const int fit = 32767 / (2 * 127 * largest);
  return fit >= 8 ? 8 : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// kRows rows times half a panel or a whole one.
template <int kForm, int kRows, int kHalves>
class Rows {
 public:
  using P = Planes<kForm>;
  static constexpr int kBytes = kBlockBytes / 2;
  static constexpr int kRun =
      P::kGrouped ? quads_in_word(P::kHasLevels ? kMostLevel : P::kMask) : 1;

  Rows(const QuantizedRows& q, const PlaneWeights& w, int64_t row, int64_t panel, int half)
      : w_(w), groups_(w.group_count()), numbers_(w) {
    strip_ = w.codes + panel * P::strips(w.k) * P::kStripBytes + half * kBytes;
    bytes_ = P::kGrouped ? w.groups + panel * groups_ * kPanel + half * Avx2::kLanes : nullptr;
    for (int r = 0; r < kRows; ++r) {
      q_[r] = q.codes + (row + r) * q.stride;
      __asm__("" : "+r"(q_[r]));
      sums_[r] = q.sums + (row + r) * groups_;
    }
  }

  QC_INLINE void multiply(__m256i (&totals)[kRows][kHalves]) {
    for_all([&](int r, int h) { totals[r][h] = _mm256_setzero_si256(); });
    const int64_t strips = P::strips(w_.k);
    if constexpr (!P::kGrouped) {
      for (int64_t s = 0; s < strips; ++s) signed_strip(totals);
    } else if (w_.group_size < kStrip) {
      int64_t g = 0;
      for (; g + 1 < groups_; g += 2) two_groups(totals, g);
      if (g < groups_) group<0, kQuads / 2>(totals, g, 1);
    } else {
      const int64_t per_group = w_.group_size / kStrip;
      for (int64_t g = 0, s = 0; g < groups_; ++g, s += per_group) {
        group<0, kQuads>(totals, g, strips - s < per_group ? strips - s : per_group);
      }
    }
  }

 private:
  template <typename Body>
  static QC_INLINE void for_all(Body body) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) body(r, h);
    }
  }

  QC_INLINE void advance() {
    if constexpr (kRows < 4) {
#pragma GCC unroll 8
      for (int b = 0; b < P::kBits; ++b) {
        __builtin_prefetch(strip_ + kPrefetchBytes + b * kBlockBytes);
      }
    }
    strip_ += P::kStripBytes;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) q_[r] += kStrip;
  }

  // Quads [kBegin, kEnd) of `strips` strips, which are a group.
  template <int kBegin, int kEnd>
  QC_INLINE void group(__m256i (&totals)[kRows][kHalves], int64_t g, int64_t strips) {
    __m256i multiples[kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const Factors<Bytes256, kForm> f(bytes_ + g * kPanel + h * Avx2::kLanes, numbers_);
      multiples[h] = Bytes256::spread_words(f.multiples);
      // Below 2^12, so that one 16-bit multiply is exact.
      const __m256i both = Bytes256::times(f.zero_points, f.multiples);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        take_words(totals[r][h], both, Avx2::set_ints(sums_[r][g]));
      }
    }
    for (int64_t s = 0; s < strips; ++s) {
      runs<kBegin, kEnd>(totals, multiples);
      if constexpr (kEnd - kBegin == kQuads) advance();
    }
  }

  // The two groups of a strip. Their zero points times the sums of their activations, which int16
  // holds, are one vpmaddwd.
  QC_INLINE void two_groups(__m256i (&totals)[kRows][kHalves], int64_t g) {
    __m256i multiples[2][kHalves], both[kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const std::uint8_t* bytes = bytes_ + g * kPanel + h * Avx2::kLanes;
      const Factors<Bytes256, kForm> first(bytes, numbers_), second(bytes + kPanel, numbers_);
      multiples[0][h] = Bytes256::spread_words(first.multiples);
      multiples[1][h] = Bytes256::spread_words(second.multiples);
      both[h] = Bytes256::or_(
          Bytes256::times(first.zero_points, first.multiples),
          _mm256_slli_epi32(Bytes256::times(second.zero_points, second.multiples), 16));
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256i wide =
          _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sums_[r] + g)));
      const __m256i sums = _mm256_packs_epi32(wide, wide);
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        take_words(totals[r][h], both[h], sums);
      }
    }
    runs<0, kQuads / 2>(totals, multiples[0]);
    runs<kQuads / 2, kQuads>(totals, multiples[1]);
    advance();
  }

  // As many quads at a time as int16 holds.
  template <int kBegin, int kEnd>
  QC_INLINE void runs(__m256i (&totals)[kRows][kHalves], const __m256i (&multiples)[kHalves]) {
    if constexpr (kBegin < kEnd) {
      constexpr int kStop = kBegin + kRun < kEnd ? kBegin + kRun : kEnd;
      __m256i words[kRows][kHalves];
      each_quad<kBegin, kStop>([&](auto quad) {
        constexpr int kIndex = decltype(quad)::kValue;
        __m256i codes[kHalves];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
          codes[h] = numbers_.template quad<kIndex>(strip_ + h * kBytes);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = Bytes256::quad(q_[r] + kIndex * kQuad);
#pragma GCC unroll 2
          for (int h = 0; h < kHalves; ++h) {
            add_products<kIndex == kBegin>(words[r][h], codes[h], x);
          }
        }
      });
      for_all([&](int r, int h) { add_words(totals[r][h], words[r][h], multiples[h]); });
      runs<kStop, kEnd>(totals, multiples);
    }
  }

  // Eight bits: |w| <= 127 times +-q, so that a pair of products stays below 2^15.
  QC_INLINE void signed_strip(__m256i (&totals)[kRows][kHalves]) {
    each_quad<0, kQuads>([&](auto quad) {
      constexpr int kIndex = decltype(quad)::kValue;
      __m256i weights[kHalves], sizes[kHalves];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        weights[h] = Bytes256::load(strip_ + kIndex * kBlockBytes + h * kBytes);
        sizes[h] = _mm256_abs_epi8(weights[h]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = Bytes256::quad(q_[r] + kIndex * kQuad);
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
          const __m256i pairs = _mm256_maddubs_epi16(sizes[h], _mm256_sign_epi8(x, weights[h]));
          totals[r][h] =
              _mm256_add_epi32(totals[r][h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
      }
    });
    advance();
  }

  const PlaneWeights& w_;
  int64_t groups_;
  const std::uint8_t* strip_;
  const std::uint8_t* bytes_;
  const std::int8_t* q_[kRows];
  const std::int32_t* sums_[kRows];
  const Numbers<Bytes256, kForm> numbers_;
};

template <int kForm, int kRows, int kHalves>
__attribute__((noinline)) void tile(const QuantizedRows& q, const PlaneWeights& w, const Tile& t,
                                    int64_t row, int64_t panel, int half = 0) {
  __m256i totals[kRows][kHalves];
  Rows<kForm, kRows, kHalves>(q, w, row, panel, half).multiply(totals);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      finish<Avx2>(q, w, t, row + r, panel * kPanel + (half + h) * Avx2::kLanes, totals[r][h]);
    }
  }
}

// A whole panel where 16 registers hold its sums.
template <int kForm, int kRows>
void panel_rows(const QuantizedRows& q, const PlaneWeights& w, const Tile& t, int64_t row,
                int64_t panel) {
  if constexpr (kRows <= 2) {
    tile<kForm, kRows, 2>(q, w, t, row, panel);
  } else {
    tile<kForm, kRows, 1>(q, w, t, row, panel);
    if (t.column_end - panel * kPanel > kPanel / 2) tile<kForm, kRows, 1>(q, w, t, row, panel, 1);
  }
}

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  for (int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    int64_t row = t.row_begin;
    while (row < t.row_end) {
      const int64_t left = t.row_end - row;
      // 5 to 7 rows are two tiles of nearly the same height.
      const int64_t height = left >= 8 ? 4 : left > 4 ? (left + 1) / 2 : left;
      with_count<4>(height, [&](auto count) {
        panel_rows<kForm, decltype(count)::kValue>(q, w, t, row, panel);
      });
      row += height;
    }
  }
}

}  // namespace

QC_EACH_FORM(QC_DEFINE_LINEAR, avx2)

}  // namespace qc::kernels
