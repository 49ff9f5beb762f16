// AVX2 kernels, without VNNI. Internal linkage throughout: see matmul_avx512vnni.cc.
//
// vpmaddubsw(u4, s8) is at most 2 * 15 * 127 = 3810 in magnitude, so eight of them add up in int16
// before one vpmaddwd widens them. Codes of 8 bits would saturate: their nibbles are multiplied one
// by one, and the high sums widened with a factor of 16.
#include "kernels/matmul/half_panel.h"

namespace qc::kernels {
namespace {

// Blocks whose products fit into 16 bits.
constexpr int run_length(int bits) { return bits == 4 ? 4 : 8; }

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

// 16-bit sums of products: of low and high nibbles together, or apart where they weigh differently.
template <int kRows, int kHalves>
struct Partial {
  __m256i low[kRows][kHalves];
  __m256i high[kRows][kHalves];
};

// The products of one block, the first of their sums or not.
template <int kBits, bool kFirst, int kRows, int kHalves>
QC_INLINE void add_block(Partial<kRows, kHalves>& sums, const std::uint8_t* codes,
                         const std::int8_t* const (&q)[kRows], int64_t k) {
  static_assert(kBits == 4 || kBits == 8, "no way to unpack this width");
  __m256i packed[kHalves], low[kHalves], high[kHalves];
  load(packed, codes);
  low_nibbles(low, packed);
  if (kBits == 8) high_nibbles(high, packed);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m256i quad = broadcast(q[r] + k);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      add_products<kFirst>(sums.low[r][h], low[h], quad);
      if (kBits == 8) add_products<kFirst>(sums.high[r][h], high[h], quad);
    }
  }
  if (kBits == 8) return;
  high_nibbles(high, packed);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m256i quad = broadcast(q[r] + k + kQuad);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) add_products<false>(sums.low[r][h], high[h], quad);
  }
}

// The products of `count` blocks.
template <int kBits, int kRows, int kHalves>
QC_INLINE void add_blocks(Partial<kRows, kHalves>& sums, const std::uint8_t* codes,
                          const std::int8_t* const (&q)[kRows], int64_t k, int64_t count) {
  constexpr int kDepth = Codes<kBits>::kDepth;
  constexpr int kRun = run_length(kBits);
  add_block<kBits, true>(sums, codes, q, k);
  if (count == kRun) {
#pragma GCC unroll 8
    for (int i = 1; i < kRun; ++i) {
      add_block<kBits, false>(sums, codes + i * kBlockBytes, q, k + i * kDepth);
    }
  } else {
    for (int64_t i = 1; i < count; ++i) {
      add_block<kBits, false>(sums, codes + i * kBlockBytes, q, k + i * kDepth);
    }
  }
}

// dots += the pairs of 16-bit sums.
template <int kBits, int kRows, int kHalves>
QC_INLINE void add_pairs(__m256i (&dots)[kRows][kHalves], const Partial<kRows, kHalves>& sums) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const __m256i low = _mm256_madd_epi16(sums.low[r][h], _mm256_set1_epi16(1));
      dots[r][h] = _mm256_add_epi32(dots[r][h], low);
      if (kBits == 8) {
        const __m256i high = _mm256_madd_epi16(sums.high[r][h], _mm256_set1_epi16(16));
        dots[r][h] = _mm256_add_epi32(dots[r][h], high);
      }
    }
  }
}

template <int kWidth>
struct Maddubs {
  static constexpr int kBits = kWidth;
  using Lanes = Avx2;

  template <int kRows, int kHalves>
  static QC_INLINE void dot(const Group<Maddubs>& group, const std::int8_t* const (&q)[kRows],
                            __m256i (&dots)[kRows][kHalves]) {
    constexpr int kRun = run_length(kBits);
    start(group, dots);
    const std::uint8_t* codes = group.codes;
    int64_t k = group.k;
    int64_t left = group.count();  // one at least
    do {
      const int64_t run = left < kRun ? left : kRun;
      if (kRows < 4) {
#pragma GCC unroll 8
        for (int i = 0; i < kRun; ++i) {
          const auto* ahead = reinterpret_cast<const char*>(codes + i * kBlockBytes);
          _mm_prefetch(ahead + kPrefetchBytes, _MM_HINT_T0);
        }
      }
      Partial<kRows, kHalves> partial;
      add_blocks<kBits>(partial, codes, q, k, run);
      add_pairs<kBits>(dots, partial);
      codes += run * kBlockBytes;
      k += run * Codes<kBits>::kDepth;
      left -= run;
    } while (left > 0);
  }
};

// A whole panel where 16 registers hold its sums.
template <int kBits, int kRows>
void panel_rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel) {
  using Kernel = Maddubs<kBits>;
  if (kBits == 4 || kRows <= 2) {
    tile<Kernel, kRows, 2>(a, w, t, row, panel);
  } else {
    tile<Kernel, kRows, 1>(a, w, t, row, panel);
    if (t.column_end - panel * kPanel > kPanel / 2) tile<Kernel, kRows, 1>(a, w, t, row, panel, 1);
  }
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  for (int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    int64_t row = t.row_begin;
    while (row < t.row_end) {
      const int64_t left = t.row_end - row;
      // 5 to 7 rows are two tiles of nearly the same height.
      const int64_t height = left >= 8 ? 4 : left > 4 ? (left + 1) / 2 : left;
      with_count<4>(height, [&](auto count) {
        panel_rows<kBits, decltype(count)::kValue>(a, w, t, row, panel);
      });
      row += height;
    }
  }
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, avx2)

}  // namespace qc::kernels
