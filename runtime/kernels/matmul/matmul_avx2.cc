// AVX2 kernels, without VNNI. Internal linkage throughout: see matmul_avx512vnni.cc.
//
// 4 bit: vpmaddubsw(u4, s8) is at most 2 * 15 * 127 = 3810 in magnitude, so eight of them add up
// in int16 before one vpmaddwd widens them. 8 bit: u8 * s8 pairs would saturate, so even and odd
// values of k are widened to int16 and multiplied with vpmaddwd, whose int32 sums are exact.
#include <immintrin.h>

#include <cstdint>

#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kHalf = 8;        // columns in half a panel: one ymm register of int32
constexpr int kHalfBytes = 32;  // bytes of a block that belong to them

__m256i quad_at(const std::int8_t* codes) {
  std::int32_t quad;
  __builtin_memcpy(&quad, codes, sizeof quad);
  return _mm256_set1_epi32(quad);
}

// Adds the products of `count` blocks to dots, for kRows rows and half a panel.
template <int kRows>
void add_blocks_4(__m256i (&dots)[kRows], const std::uint8_t* codes, const std::int8_t* q,
                  int64_t stride, int64_t count) {
  const __m256i low_bits = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t b = 0; b < count; b += 4) {
    __m256i partial[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) partial[r] = _mm256_setzero_si256();
    const int64_t end = b + 4 < count ? b + 4 : count;
    for (int64_t i = b; i < end; ++i) {
      const __m256i packed =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i * kBlockBytes));
      const __m256i low = _mm256_and_si256(packed, low_bits);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_bits);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const std::int8_t* at = q + r * stride + i * 8;
        partial[r] = _mm256_add_epi16(partial[r], _mm256_maddubs_epi16(low, quad_at(at)));
        partial[r] = _mm256_add_epi16(partial[r], _mm256_maddubs_epi16(high, quad_at(at + 4)));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(partial[r], ones));
    }
  }
}

template <int kRows>
void add_blocks_8(__m256i (&dots)[kRows], const std::uint8_t* codes, const std::int8_t* q,
                  int64_t stride, int64_t count) {
  const __m256i even_bytes = _mm256_set1_epi16(255);
  for (int64_t i = 0; i < count; ++i) {
    const __m256i packed =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i * kBlockBytes));
    const __m256i even = _mm256_and_si256(packed, even_bytes);
    const __m256i odd = _mm256_srli_epi16(packed, 8);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256i quad = quad_at(q + r * stride + i * 4);
      const __m256i q_even = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8);
      const __m256i q_odd = _mm256_srai_epi16(quad, 8);
      dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(even, q_even));
      dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(odd, q_odd));
    }
  }
}

// kRows rows x half a panel, over all of K; `half` is 0 or 1.
template <int kBits, int kRows>
void tile(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel,
          int half) {
  constexpr int kDepth = 32 / kBits;
  const int64_t blocks = (w.k + kDepth - 1) / kDepth;
  const int64_t blocks_per_group = w.group_size / kDepth;
  const int64_t groups = (w.k + w.group_size - 1) / w.group_size;
  const std::uint8_t* codes = w.codes + panel * blocks * kBlockBytes + half * kHalfBytes;
  const std::int8_t* q = a.codes + row * a.stride;
  const std::int32_t* starts = a.starts + row * groups;
  const int64_t first_group = panel * groups * kPanel + half * kHalf;

  __m256 sums[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_ps();

  for (int64_t g = 0; g < groups; ++g) {
    __m256i zero = _mm256_set1_epi32(1);
    if (w.zero_points != nullptr) {
      const auto* at = w.zero_points + first_group + g * kPanel;
      zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    }
    __m256i dots[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      dots[r] = _mm256_mullo_epi32(zero, _mm256_set1_epi32(starts[r * groups + g]));
    }
    const int64_t first = g * blocks_per_group;
    const int64_t left = blocks - first;
    const int64_t count = left < blocks_per_group ? left : blocks_per_group;
    if (kBits == 4) {
      add_blocks_4<kRows>(dots, codes + first * kBlockBytes, q + first * kDepth, a.stride, count);
    } else {
      add_blocks_8<kRows>(dots, codes + first * kBlockBytes, q + first * kDepth, a.stride, count);
    }
    const auto* at = w.scales + first_group + g * kPanel;
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const float x_scale = a.scale_count == 1 ? 1.0f : a.scales[(row + r) * groups + g];
      sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]),
                                _mm256_mul_ps(scale, _mm256_set1_ps(x_scale)), sums[r]);
    }
  }

  const int64_t column = panel * kPanel + half * kHalf;
  const int64_t columns = t.column_end - column;
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(
      _mm256_set1_epi32(static_cast<int>(columns < kHalf ? columns : kHalf)), lanes);
  const __m256 bias =
      w.bias != nullptr ? _mm256_maskload_ps(w.bias + column, mask) : _mm256_setzero_ps();
  float* out = t.out + (row - t.row_begin) * t.out_stride + column - t.panel_begin * kPanel;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m256 row_scale = _mm256_set1_ps(a.scale_count == 1 ? a.scales[row + r] : 1.0f);
    _mm256_maskstore_ps(out + r * t.out_stride, mask, _mm256_fmadd_ps(sums[r], row_scale, bias));
  }
}

template <int kBits, int kRows>
void panel_rows(const Activations& a, const Weights& w, const Tile& t, int64_t row, int64_t panel) {
  tile<kBits, kRows>(a, w, t, row, panel, 0);
  if (t.column_end - panel * kPanel > kHalf) tile<kBits, kRows>(a, w, t, row, panel, 1);
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  for (int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    int64_t row = t.row_begin;
    for (; row + 4 <= t.row_end; row += 4) panel_rows<kBits, 4>(a, w, t, row, panel);
    for (; row < t.row_end; ++row) panel_rows<kBits, 1>(a, w, t, row, panel);
  }
}

}  // namespace

void matmul_s8_u4_f32_avx2(const Activations& a, const Weights& w, const Tile& t) {
  matmul<4>(a, w, t);
}

void matmul_s8_u8_f32_avx2(const Activations& a, const Weights& w, const Tile& t) {
  matmul<8>(a, w, t);
}

}  // namespace qc::kernels
