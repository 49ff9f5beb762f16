// vpdpbusd kernels on 256-bit registers. The files that include this differ in their flags, and so
// in the encoding of the instruction. Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_MATMUL_MATMUL_VNNI256_H_
#define QC_KERNELS_MATMUL_MATMUL_VNNI256_H_

#include "kernels/matmul/half_panel.h"

namespace qc::kernels {
namespace {

// sum += dot products of 8 unsigned quads with 8 signed ones. In assembly so that the sum is
// updated in place: from intrinsics GCC copies sums about until it has to spill them.
inline __attribute__((always_inline)) void add_dot(__m256i& sum, __m256i unsigned_quads,
                                                   __m256i signed_quads) {
#ifdef __AVXVNNI__
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(unsigned_quads), "x"(signed_quads));
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_quads), "v"(signed_quads));
#endif
}

// kRows x kPanels panels, over all of K.
template <int kBits, int kRows, int kPanels>
void tile(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel) {
  constexpr int kDepth = 32 / kBits;
  constexpr int kHalves = 2 * kPanels;
  // With few rows there are registers to load a quad once for all panels.
  constexpr bool kShared = kRows <= 2;
  const int64_t blocks = (w.k + kDepth - 1) / kDepth;
  const int64_t blocks_per_group = w.group_size / kDepth;
  const int64_t groups = (w.k + w.group_size - 1) / w.group_size;
  const int64_t panel_bytes = blocks * kBlockBytes;
  const __m256i low_bits = _mm256_set1_epi8(15);

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

  __m256 sums[kRows][kHalves];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int h = 0; h < kHalves; ++h) sums[r][h] = _mm256_setzero_ps();
  }

  for (int64_t g = 0; g < groups; ++g) {
    __m256i dots[kRows][kHalves];
#pragma GCC unroll 8
    for (int h = 0; h < kHalves; ++h) {
      const int64_t at = first_group + (h / 2 * groups + g) * kPanel + h % 2 * kHalf;
      start_dots(dots, h, w.zero_points != nullptr ? w.zero_points + at : nullptr, starts, groups,
                 g);
    }

    const int64_t left = blocks - g * blocks_per_group;
    const int64_t count = left < blocks_per_group ? left : blocks_per_group;
    for (int64_t b = 0; b < count; ++b) {
      __m256i low_quads[kRows], high_quads[kRows];
      if (kShared) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          low_quads[r] = broadcast(q[r] + k);
          if (kBits == 4) high_quads[r] = broadcast(q[r] + k + 4);
        }
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const std::uint8_t* block = codes + p * panel_bytes;
        if (kRows < 6)
          _mm_prefetch(reinterpret_cast<const char*>(block + kPrefetchBytes), _MM_HINT_T0);
        __m256i packed[2] = {load(block), load(block + kHalfBytes)};
        __m256i low[2] = {packed[0], packed[1]};
        if (kBits == 4) {
          low[0] = _mm256_and_si256(packed[0], low_bits);
          low[1] = _mm256_and_si256(packed[1], low_bits);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i quad = kShared ? low_quads[r] : broadcast(q[r] + k);
          add_dot(dots[r][2 * p], low[0], quad);
          add_dot(dots[r][2 * p + 1], low[1], quad);
        }
        if (kBits == 8) continue;
        if (!kShared) {
          // Read again: 16 registers can't hold these beside 12 sums.
          __asm__("" : "+r"(block));
          packed[0] = load(block);
          packed[1] = load(block + kHalfBytes);
        }
        const __m256i high[2] = {_mm256_and_si256(_mm256_srli_epi16(packed[0], 4), low_bits),
                                 _mm256_and_si256(_mm256_srli_epi16(packed[1], 4), low_bits)};
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i quad = kShared ? high_quads[r] : broadcast(q[r] + k + 4);
          add_dot(dots[r][2 * p], high[0], quad);
          add_dot(dots[r][2 * p + 1], high[1], quad);
        }
      }
      codes += kBlockBytes;
      k += kDepth;
    }

#pragma GCC unroll 8
    for (int h = 0; h < kHalves; ++h) {
      const auto* at = w.scales + first_group + (h / 2 * groups + g) * kPanel + h % 2 * kHalf;
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const float x_scale = a.scale_count == 1 ? 1.0f : a.scales[(row + r) * groups + g];
        sums[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][h]),
                                     _mm256_mul_ps(scale, _mm256_set1_ps(x_scale)), sums[r][h]);
      }
    }
  }

#pragma GCC unroll 8
  for (int h = 0; h < kHalves; ++h) write_half(sums, h, a, w, t, row, panel * kPanel + h * kHalf);
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
  constexpr int64_t kStep = 4;
  for (int64_t panel = t.panel_begin; panel < t.panel_end; panel += kStep) {
    const int64_t end = panel + kStep < t.panel_end ? panel + kStep : t.panel_end;
    int64_t row = t.row_begin;
    for (; row + 6 <= t.row_end; row += 6) rows<kBits, 6, 1>(a, w, t, row, panel, end);
    switch (t.row_end - row) {
      case 1:
        rows<kBits, 1, 4>(a, w, t, row, panel, end);
        break;
      case 2:
        rows<kBits, 2, 2>(a, w, t, row, panel, end);
        break;
      case 3:
        rows<kBits, 3, 2>(a, w, t, row, panel, end);
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
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_MATMUL_VNNI256_H_
