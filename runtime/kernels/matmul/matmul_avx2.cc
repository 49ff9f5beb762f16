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
inline __attribute__((always_inline)) void add_products(__m256i& sum, __m256i unsigned_bytes,
                                                        __m256i signed_bytes) {
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

template <int kHalves>
inline __attribute__((always_inline)) void unpack_high(__m256i (&high)[kHalves],
                                                       const std::uint8_t* codes) {
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    const __m256i packed = load(codes + h * kHalfBytes);
    high[h] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
  }
}

// The products of one block, the first of their sums or not.
template <int kBits, bool kFirst, int kRows, int kHalves>
inline __attribute__((always_inline)) void add_block(Partial<kRows, kHalves>& sums,
                                                     const std::uint8_t* codes,
                                                     const std::int8_t* const (&q)[kRows],
                                                     int64_t k) {
  __m256i low[kHalves], high[kHalves];
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    low[h] = _mm256_and_si256(load(codes + h * kHalfBytes), _mm256_set1_epi8(15));
  }
  if (kBits == 8) unpack_high(high, codes);
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
  unpack_high(high, codes);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m256i quad = broadcast(q[r] + k + 4);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) add_products<false>(sums.low[r][h], high[h], quad);
  }
}

// The products of `count` blocks.
template <int kBits, int kRows, int kHalves>
inline __attribute__((always_inline)) void add_blocks(Partial<kRows, kHalves>& sums,
                                                      const std::uint8_t* codes,
                                                      const std::int8_t* const (&q)[kRows],
                                                      int64_t k, int64_t count) {
  constexpr int kDepth = 32 / kBits;
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

// kRows rows x kHalves halves of a panel from the first or second on, over all of K.
template <int kBits, int kRows, int kHalves>
void tile(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
          int first_half) {
  constexpr int kDepth = 32 / kBits;
  constexpr int kRun = run_length(kBits);
  const int64_t blocks = (w.k + kDepth - 1) / kDepth;
  const int64_t blocks_per_group = w.group_size / kDepth;
  const int64_t groups = (w.k + w.group_size - 1) / w.group_size;
  const bool row_scales = a.scale_count == 1;
  const __m256i ones = _mm256_set1_epi16(1);
  const std::uint8_t* codes = w.codes + panel * blocks * kBlockBytes + first_half * kHalfBytes;
  const std::int8_t* q[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    q[r] = a.codes + (row + r) * a.stride;
    // Hides where the pointer came from: GCC would rather recompute all of them for every block.
    __asm__("" : "+r"(q[r]));
  }
  int64_t k = 0;
  const std::int32_t* starts = a.starts + row * groups;
  const int64_t first_group = panel * groups * kPanel + first_half * kHalf;

  __m256 sums[kRows][kHalves];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) sums[r][h] = _mm256_setzero_ps();
  }

  for (int64_t g = 0; g < groups; ++g) {
    __m256i dots[kRows][kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const int64_t at = first_group + g * kPanel + h * kHalf;
      start_dots(dots, h, w.zero_points != nullptr ? w.zero_points + at : nullptr, starts, groups,
                 g);
    }

    const int64_t left = blocks - g * blocks_per_group;
    const int64_t count = left < blocks_per_group ? left : blocks_per_group;
    for (int64_t b = 0; b < count; b += kRun) {
      const int64_t run = count - b < kRun ? count - b : kRun;
      if (kRows < 4) {
#pragma GCC unroll 8
        for (int i = 0; i < kRun; ++i) {
          const auto* ahead = reinterpret_cast<const char*>(codes + i * kBlockBytes);
          _mm_prefetch(ahead + kPrefetchBytes, _MM_HINT_T0);
        }
      }
      Partial<kRows, kHalves> partial;
      add_blocks<kBits>(partial, codes, q, k, run);
      codes += run * kBlockBytes;
      k += run * kDepth;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
          dots[r][h] = _mm256_add_epi32(dots[r][h], _mm256_madd_epi16(partial.low[r][h], ones));
          if (kBits == 8) {
            const __m256i high = _mm256_madd_epi16(partial.high[r][h], _mm256_set1_epi16(16));
            dots[r][h] = _mm256_add_epi32(dots[r][h], high);
          }
        }
      }
    }

#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const auto* at = w.scales + first_group + g * kPanel + h * kHalf;
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256 dot = _mm256_cvtepi32_ps(dots[r][h]);
        const __m256 both =
            row_scales ? scale
                       : _mm256_mul_ps(scale, _mm256_set1_ps(a.scales[(row + r) * groups + g]));
        sums[r][h] = _mm256_fmadd_ps(dot, both, sums[r][h]);
      }
    }
  }

#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    const int64_t column = panel * kPanel + (first_half + h) * kHalf;
    if (column < t.column_end) write_half(sums, h, a, w, t, row, column);
  }
}

// A whole panel where 16 registers hold its sums.
template <int kBits, int kRows>
void panel_rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel) {
  if (kBits == 4 || kRows <= 2) {
    tile<kBits, kRows, 2>(a, w, t, row, panel, 0);
  } else {
    tile<kBits, kRows, 1>(a, w, t, row, panel, 0);
    if (t.column_end - panel * kPanel > kHalf) tile<kBits, kRows, 1>(a, w, t, row, panel, 1);
  }
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  for (int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    int64_t row = t.row_begin;
    while (row < t.row_end) {
      const int64_t left = t.row_end - row;
      // 5 to 7 rows are two tiles of nearly the same height.
      const int64_t count = left >= 8 ? 4 : left > 4 ? (left + 1) / 2 : left;
      switch (count) {
        case 1:
          panel_rows<kBits, 1>(a, w, t, row, panel);
          break;
        case 2:
          panel_rows<kBits, 2>(a, w, t, row, panel);
          break;
        case 3:
          panel_rows<kBits, 3>(a, w, t, row, panel);
          break;
        default:
          panel_rows<kBits, 4>(a, w, t, row, panel);
          break;
      }
      row += count;
    }
  }
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, avx2)

}  // namespace qc::kernels
