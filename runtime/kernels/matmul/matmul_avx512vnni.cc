// vpdpbusd kernels. Everything but the entry points has internal linkage, and no header with inline
// functions that are not QC_INLINE is included: an AVX-512 copy of a shared inline function must
// not reach the linker, which could pick it for every caller.
#include <immintrin.h>

#include <cstdint>

#include "kernels/matmul/tile.h"
#include "kernels/matmul/whole_panel.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {
namespace {

// Few rows take one panel after the other, so that weights come from memory as one stream, which is
// what hardware prefetches best; this far ahead helps it over the ends of pages.
constexpr int kPrefetchBytes = 4096;

// A single row waits for its loads of quads, which several panels could share. Panels from this
// size on are streams long enough to be prefetched side by side.
constexpr int64_t kLongPanelBytes = 32768;

// sum += dot products of 16 unsigned quads with one signed quad. In assembly because of the {1to16}
// operand: from intrinsics GCC keeps each broadcast in a register of its own, which a 6 x 2 tile
// does not have, and spills sums in the inner loop.
QC_INLINE void add_dot(__m512i& sum, __m512i unsigned_quads, const std::int8_t* signed_quad) {
  struct Quad {
    std::int8_t values[4];
  };
  reads(signed_quad, kQuad, kQuad);
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(unsigned_quads), "m"(*reinterpret_cast<const Quad*>(signed_quad)));
}

QC_INLINE __m512i broadcast(const std::int8_t* quad) {
  std::int32_t value;
  __builtin_memcpy(&value, quad, sizeof value);
  return _mm512_set1_epi32(value);
}

// A row alone whose panels share its quads.
template <int kRows, int kPanels>
constexpr bool kShares = kRows == 1 && kPanels > 1;

// Products take turns on so many chains of sums, so that short tiles don't wait for their own.
template <int kBits, int kRows, int kPanels>
constexpr int kChainsFor = kShares<kRows, kPanels> && kBits == 4 ? 2
                           : kRows * kPanels >= 4                ? 1
                           : kRows == 1 && kBits == 8            ? 4
                                                                 : 2;

// One block of packed weights times the quads of kRows rows. With several chains the high nibbles
// stay where they are, and odd chains hold 16 times their sum.
template <int kBits, int kRows, int kPanels, int kChains>
QC_INLINE void multiply_block(__m512i (&dots)[kChains][kRows][kPanels], const std::uint8_t* codes,
                              int64_t panel_bytes, const std::int8_t* const (&q)[kRows], int64_t k,
                              int chain) {
  constexpr int kQuads = Codes<kBits>::kQuads;
  constexpr bool kShared = kShares<kRows, kPanels>;
  __m512i quads[kQuads];
#pragma GCC unroll 8
  for (int i = 0; kShared && i < kQuads; ++i) quads[i] = broadcast(q[0] + k + i * kQuad);
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    const std::uint8_t* block = codes + p * panel_bytes;
    if (kRows < 6 && kPanels == 1)
      _mm_prefetch(reinterpret_cast<const char*>(block + kPrefetchBytes), _MM_HINT_T0);
    const __m512i packed = _mm512_loadu_si512(block);
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      const __m512i weights = unpack<kBits, (kChains > 1)>(packed, i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        __m512i& sum = dots[(chain + i) % kChains][r][p];
        if (kShared) {
          sum = _mm512_dpbusd_epi32(sum, weights, quads[i]);
        } else {
          add_dot(sum, weights, q[r] + k + i * kQuad);
        }
      }
    }
  }
}

// The chains of one sum together.
template <int kBits, int kRows, int kPanels, int kChains>
QC_INLINE __m512i join(const __m512i (&dots)[kChains][kRows][kPanels], int r, int p) {
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

template <int kWidth>
struct Vnni512 {
  static constexpr int kBits = kWidth;
  using Lanes = Avx512;
  static constexpr int panels_for(int rows) { return rows == 6 ? 2 : 1; }

  template <int kRows, int kPanels>
  static QC_INLINE void dot(const Group<Vnni512>& group, const std::int8_t* const (&q)[kRows],
                            __m512i (&dots)[kRows][kPanels]) {
    constexpr int kChains = kChainsFor<kBits, kRows, kPanels>;
    constexpr int kQuads = Codes<kBits>::kQuads;
    constexpr int kUnroll = (kChains + kQuads - 1) / kQuads;  // blocks
    __m512i chains[kChains][kRows][kPanels];
    start(group, chains[0]);
#pragma GCC unroll 8
    for (int i = kRows * kPanels; i < kChains * kRows * kPanels; ++i) {
      chains[i / (kRows * kPanels)][i / kPanels % kRows][i % kPanels] = _mm512_setzero_si512();
    }
    const int64_t count = group.count();
    const std::uint8_t* codes = group.codes;
    int64_t k = group.k;
    int64_t b = 0;
    for (; b + kUnroll <= count; b += kUnroll) {
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u) {
        multiply_block<kBits>(chains, codes, group.panel_bytes, q, k, u * kQuads);
        codes += kBlockBytes;
        k += Codes<kBits>::kDepth;
      }
    }
    for (; kUnroll > 1 && b < count; ++b) {
      multiply_block<kBits>(chains, codes, group.panel_bytes, q, k, 0);
      codes += kBlockBytes;
      k += Codes<kBits>::kDepth;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) dots[r][p] = join<kBits>(chains, r, p);
    }
  }
};

// Rows past the sixes, of panels that are in L2 by now. A tile of one or two rows would unpack them
// for next to nothing, so it comes with 7 or 8 rows (9: with three), which are two tiles.
template <typename Kernel>
void last_rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
               int64_t end) {
  while (row < t.row_end) {
    const int64_t left = t.row_end - row;
    if (left == 5 || left == 9) {
      rows<Kernel, 5, 2>(a, w, t, row, panel, end);
      row += 5;
    } else if (left == 3) {
      rows<Kernel, 3, 2>(a, w, t, row, panel, end);
      row += 3;
    } else {
      rows<Kernel, 4, 2>(a, w, t, row, panel, end);
      row += 4;
    }
  }
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  using Kernel = Vnni512<kBits>;
  const bool long_panels = Codes<kBits>::blocks(w.k) * kBlockBytes >= kLongPanelBytes;
  const int64_t count = t.row_end - t.row_begin;
  const int64_t sixes = count / 6 - (count % 6 >= 1 && count % 6 <= 3 ? 1 : 0);
  each_four_panels(t, [&](int64_t panel, int64_t end) {
    int64_t row = t.row_begin;
    if (count >= 6) {
      for (int64_t i = 0; i < sixes; ++i, row += 6) rows<Kernel, 6>(a, w, t, row, panel, end);
      last_rows<Kernel>(a, w, t, row, panel, end);
    } else if (count == 1 && long_panels) {
      rows<Kernel, 1, 4>(a, w, t, row, panel, end);
    } else {
      with_count<5>(
          count, [&](auto few) { rows<Kernel, decltype(few)::kValue>(a, w, t, row, panel, end); });
    }
  });
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, avx512vnni)

}  // namespace qc::kernels
