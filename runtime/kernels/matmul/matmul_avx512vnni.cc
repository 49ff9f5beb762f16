// vpdpbusd kernels. Everything but the two entry points has internal linkage, and no header with
// inline functions is included: an AVX-512 copy of a shared inline function must not reach the
// linker, which could pick it for every caller.
#include <immintrin.h>

#include <cstdint>

#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

using std::int64_t;

// Few rows take one panel after the other, so that weights come from memory as one stream, which is
// what hardware prefetches best; this far ahead helps it over the ends of pages.
constexpr int kPrefetchBytes = 4096;

// A single row waits for its loads of quads, which several panels could share. Panels from this
// size on are streams long enough to be prefetched side by side.
constexpr int64_t kLongPanelBytes = 32768;

// sum += dot products of 16 unsigned quads with one signed quad. In assembly because of the {1to16}
// operand: from intrinsics GCC keeps each broadcast in a register of its own, which a 6 x 2 tile
// does not have, and spills sums in the inner loop.
inline __attribute__((always_inline)) void add_dot(__m512i& sum, __m512i unsigned_quads,
                                                   const std::int8_t* signed_quad) {
  struct Quad {
    std::int8_t values[4];
  };
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(unsigned_quads), "m"(*reinterpret_cast<const Quad*>(signed_quad)));
}

inline __attribute__((always_inline)) __m512i broadcast(const std::int8_t* quad) {
  std::int32_t value;
  __builtin_memcpy(&value, quad, sizeof value);
  return _mm512_set1_epi32(value);
}

// One block of packed weights times kRows quads (4 bit: two quads) of activations. Products take
// turns on the chains of `dots`, so that short tiles don't wait for their own sums. With several
// chains the high nibbles stay where they are, and odd chains hold 16 times their sum.
template <int kBits, int kRows, int kPanels, int kChains>
inline __attribute__((always_inline)) void multiply_block(__m512i (&dots)[kChains][kRows][kPanels],
                                                          const std::uint8_t* codes,
                                                          int64_t panel_bytes,
                                                          const std::int8_t* const (&q)[kRows],
                                                          int64_t k, int chain) {
  constexpr bool kShares = kRows == 1 && kPanels > 1;
  const __m512i low_bits = _mm512_set1_epi8(15);
  const __m512i low_quad = kShares ? broadcast(q[0] + k) : low_bits;
  const __m512i high_quad = kShares && kBits == 4 ? broadcast(q[0] + k + 4) : low_bits;
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    const std::uint8_t* block = codes + p * panel_bytes;
    if (kRows < 6 && kPanels == 1)
      _mm_prefetch(reinterpret_cast<const char*>(block + kPrefetchBytes), _MM_HINT_T0);
    const __m512i packed = _mm512_loadu_si512(block);
    const __m512i low = kBits == 8 ? packed : _mm512_and_si512(packed, low_bits);
    const __m512i high = kChains > 1 ? _mm512_andnot_si512(low_bits, packed)
                                     : _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_bits);
    if (kShares) {
      __m512i& last = dots[kChains - 1][0][p];
      dots[0][0][p] = _mm512_dpbusd_epi32(dots[0][0][p], low, low_quad);
      if (kBits == 4) last = _mm512_dpbusd_epi32(last, high, high_quad);
      continue;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) add_dot(dots[chain % kChains][r][p], low, q[r] + k);
    if (kBits == 8) continue;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) add_dot(dots[(chain + 1) % kChains][r][p], high, q[r] + k + 4);
  }
}

// The chains of one sum together.
template <int kBits, int kRows, int kPanels, int kChains>
inline __attribute__((always_inline)) __m512i join(const __m512i (&dots)[kChains][kRows][kPanels],
                                                   int r, int p) {
  __m512i even = dots[0][r][p];
  if (kChains == 1) return even;
  __m512i odd = dots[kChains > 1 ? 1 : 0][r][p];
#pragma GCC unroll 8
  for (int c = 2; c < kChains; c += 2) {
    even = _mm512_add_epi32(even, dots[c][r][p]);
    odd = _mm512_add_epi32(odd, dots[c + 1][r][p]);
  }
  return _mm512_add_epi32(even, kBits == 4 ? _mm512_srai_epi32(odd, 4) : odd);
}

// kRows x kPanels panels, over all of K. The int32 sums of a group and the float sums of all groups
// stay in registers.
template <int kBits, int kRows, int kPanels>
void tile(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel) {
  constexpr int kDepth = 32 / kBits;
  constexpr bool kShares = kRows == 1 && kPanels > 1;
  constexpr int kChains = kShares && kBits == 4      ? 2
                          : kRows * kPanels >= 4     ? 1
                          : kRows == 1 && kBits == 8 ? 4
                                                     : 2;
  constexpr int kUnroll = kBits == 4 ? (kChains + 1) / 2 : kChains;  // blocks
  const int64_t blocks = (w.k + kDepth - 1) / kDepth;
  const int64_t blocks_per_group = w.group_size / kDepth;
  const int64_t groups = (w.k + w.group_size - 1) / w.group_size;
  const int64_t panel_bytes = blocks * kBlockBytes;

  const std::uint8_t* codes = w.codes + panel * panel_bytes;
  const std::int8_t* q[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    q[r] = a.codes + (row + r) * a.stride;
    // Hides where the pointer came from: GCC would rather recompute all six for every block.
    __asm__("" : "+r"(q[r]));
  }
  int64_t k = 0;
  const std::int32_t* starts = a.starts + row * groups;
  const int64_t first_group = panel * groups * kPanel;

  __m512 sums[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_setzero_ps();
  }

  for (int64_t g = 0; g < groups; ++g) {
    __m512i dots[kChains][kRows][kPanels];
    if (w.zero_points == nullptr) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i start = _mm512_set1_epi32(starts[r * groups + g]);
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) dots[0][r][p] = start;
      }
    } else {
      // Zero points are below 2^8 and sums of codes below 2^15: one 16-bit multiply, exact.
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const auto* at = w.zero_points + first_group + (p * groups + g) * kPanel;
        const __m512i zero =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          dots[0][r][p] = _mm512_madd_epi16(zero, _mm512_set1_epi32(starts[r * groups + g]));
        }
      }
    }

#pragma GCC unroll 8
    for (int i = kRows * kPanels; i < kChains * kRows * kPanels; ++i) {
      dots[i / (kRows * kPanels)][i / kPanels % kRows][i % kPanels] = _mm512_setzero_si512();
    }

    const int64_t left = blocks - g * blocks_per_group;
    const int64_t count = left < blocks_per_group ? left : blocks_per_group;
    int64_t b = 0;
    for (; b + kUnroll <= count; b += kUnroll) {
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u) {
        multiply_block<kBits>(dots, codes, panel_bytes, q, k, u * (8 / kBits));
        codes += kBlockBytes;
        k += kDepth;
      }
    }
    for (; kUnroll > 1 && b < count; ++b) {
      multiply_block<kBits>(dots, codes, panel_bytes, q, k, 0);
      codes += kBlockBytes;
      k += kDepth;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) dots[0][r][p] = join<kBits>(dots, r, p);
    }

#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const auto* at = w.scales + first_group + (p * groups + g) * kPanel;
      const __m512 scale =
          _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      if (a.scale_count == 1) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sums[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[0][r][p]), scale, sums[r][p]);
        }
      } else {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m512 x_scale = _mm512_set1_ps(a.scales[(row + r) * groups + g]);
          sums[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[0][r][p]),
                                       _mm512_mul_ps(scale, x_scale), sums[r][p]);
        }
      }
    }
  }

#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    const int64_t column = (panel + p) * kPanel;
    const int64_t columns = t.column_end - column;
    const __mmask16 mask = columns >= kPanel
                               ? 0xffff
                               : static_cast<__mmask16>((1u << (columns > 0 ? columns : 0)) - 1);
    const __m512 bias =
        w.bias != nullptr ? _mm512_maskz_loadu_ps(mask, w.bias + column) : _mm512_setzero_ps();
    float* out = t.out + (row - t.row_begin) * t.out_stride + column - t.panel_begin * kPanel;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 row_scale = _mm512_set1_ps(a.scale_count == 1 ? a.scales[row + r] : 1.0f);
      _mm512_mask_storeu_ps(out + r * t.out_stride, mask,
                            _mm512_fmadd_ps(sums[r][p], row_scale, bias));
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

// Rows past the sixes, of panels that are in L2 by now. A tile of one or two rows would unpack them
// for next to nothing, so it comes with 7 or 8 rows (9: with three), which are two tiles.
template <int kBits>
void last_rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
               int64_t panel_end) {
  while (row < t.row_end) {
    const int64_t left = t.row_end - row;
    if (left == 5 || left == 9) {
      rows<kBits, 5, 2>(a, w, t, row, panel, panel_end);
      row += 5;
    } else if (left == 3) {
      rows<kBits, 3, 2>(a, w, t, row, panel, panel_end);
      row += 3;
    } else {
      rows<kBits, 4, 2>(a, w, t, row, panel, panel_end);
      row += 4;
    }
  }
}

// Four panels at a time stay in L2 while all rows pass over them.
template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  constexpr int64_t kStep = 4, kDepth = 32 / kBits;
  const int64_t panel_bytes = (w.k + kDepth - 1) / kDepth * kBlockBytes;
  const int64_t count = t.row_end - t.row_begin;
  const int64_t sixes = count / 6 - (count % 6 >= 1 && count % 6 <= 3 ? 1 : 0);
  for (int64_t panel = t.panel_begin; panel < t.panel_end; panel += kStep) {
    const int64_t end = panel + kStep < t.panel_end ? panel + kStep : t.panel_end;
    int64_t row = t.row_begin;
    for (int64_t i = 0; i < sixes; ++i, row += 6) rows<kBits, 6, 2>(a, w, t, row, panel, end);
    if (count >= 6) {
      last_rows<kBits>(a, w, t, row, panel, end);
      continue;
    }
    switch (count) {
      case 1:
        if (panel_bytes < kLongPanelBytes) {
          rows<kBits, 1, 1>(a, w, t, row, panel, end);
        } else {
          rows<kBits, 1, 4>(a, w, t, row, panel, end);
        }
        break;
      case 2:
        rows<kBits, 2, 1>(a, w, t, row, panel, end);
        break;
      case 3:
        rows<kBits, 3, 1>(a, w, t, row, panel, end);
        break;
      case 4:
        rows<kBits, 4, 1>(a, w, t, row, panel, end);
        break;
      case 5:
        rows<kBits, 5, 1>(a, w, t, row, panel, end);
        break;
      default:
        break;
    }
  }
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, avx512vnni)

}  // namespace qc::kernels
