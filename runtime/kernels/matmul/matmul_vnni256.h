// vpdpbusd kernels on 256-bit registers. The files that include this differ in their flags, and so
// in the encoding of the instruction. Internal linkage throughout: see matmul_avx512vnni.cc.
#ifndef QC_KERNELS_MATMUL_MATMUL_VNNI256_H_
#define QC_KERNELS_MATMUL_MATMUL_VNNI256_H_

#include "kernels/matmul/half_panel.h"

namespace qc::kernels {
namespace {

// sum += dot products of 8 unsigned quads with 8 signed ones. In assembly so that the sum is
// updated in place: from intrinsics GCC copies sums about until it has to spill them.
QC_INLINE void add_dot(__m256i& sum, __m256i unsigned_quads, __m256i signed_quads) {
#ifdef __AVXVNNI__
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(unsigned_quads), "x"(signed_quads));
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_quads), "v"(signed_quads));
#endif
}

// With few rows there are registers to load a quad once for all panels.
template <int kRows>
constexpr bool kShared = kRows <= 2;

// One quad of each row times a panel, whose sums are two registers from `first` on.
template <int kRows, int kHalves>
QC_INLINE void multiply_quads(__m256i (&dots)[kRows][kHalves], int first,
                              const __m256i (&weights)[2], const __m256i (&loaded)[kRows],
                              const std::int8_t* const (&q)[kRows], int64_t k) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m256i quad = kShared<kRows> ? loaded[r] : broadcast(q[r] + k);
    add_dot(dots[r][first], weights[0], quad);
    add_dot(dots[r][first + 1], weights[1], quad);
  }
}

// Quad `i` of each column of a block.
template <int kBits>
QC_INLINE void unpack(__m256i (&weights)[2], const __m256i (&packed)[2], int i) {
  static_assert(kBits == 4 || kBits == 8, "no way to unpack this width");
  if (kBits == 8) {
    weights[0] = packed[0];
    weights[1] = packed[1];
  } else if (i == 0) {
    low_nibbles(weights, packed);
  } else {
    high_nibbles(weights, packed);
  }
}

// A block of each panel.
template <int kBits, int kRows, int kHalves>
QC_INLINE void multiply_block(__m256i (&dots)[kRows][kHalves], const std::uint8_t* codes,
                              int64_t panel_bytes, const std::int8_t* const (&q)[kRows],
                              int64_t k) {
  constexpr int kQuads = Codes<kBits>::kQuads;
  __m256i quads[kQuads][kRows];
#pragma GCC unroll 8
  for (int r = 0; kShared<kRows> && r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) quads[i][r] = broadcast(q[r] + k + i * kQuad);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kHalves / 2; ++p) {
    const std::uint8_t* block = codes + p * panel_bytes;
    if (kRows < 6) _mm_prefetch(reinterpret_cast<const char*>(block + kPrefetchBytes), _MM_HINT_T0);
    __m256i packed[2], weights[2];
    load(packed, block);
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      if (i > 0 && !kShared<kRows>) {
        // Read again: 16 registers can't hold these beside 12 sums.
        __asm__("" : "+r"(block));
        load(packed, block);
      }
      unpack<kBits>(weights, packed, i);
      multiply_quads(dots, 2 * p, weights, quads[i], q, k + i * kQuad);
    }
  }
}

template <int kWidth>
struct Vnni256 {
  static constexpr int kBits = kWidth;
  using Lanes = Avx2;
  static constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  template <int kRows, int kHalves>
  static QC_INLINE void dot(const Group<Vnni256>& group, const std::int8_t* const (&q)[kRows],
                            __m256i (&dots)[kRows][kHalves]) {
    start(group, dots);
    const std::uint8_t* codes = group.codes;
    int64_t k = group.k;
    int64_t left = group.count();  // one at least: GCC keeps the loop's registers where it knows
    do {
      multiply_block<kBits>(dots, codes, group.panel_bytes, q, k);
      codes += kBlockBytes;
      k += Codes<kBits>::kDepth;
    } while (--left > 0);
  }
};

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  all_rows<Vnni256<kBits>, 6>(a, w, t);
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_MATMUL_VNNI256_H_
