// The attention kernel over one of the classes in kernels/simd/. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_ATTENTION_ATTEND_H_
#define QC_KERNELS_ATTENTION_ATTEND_H_

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/simd/exponential.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int64_t kLine = 16;  // floats

// c[r, :] = sum over i < count of a[r, i] * b[i, :], for kRows rows and kVectors registers.
template <typename Simd, int kRows, int kVectors>
void multiply_tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                   int64_t count, float* c, int64_t c_stride) {
  typename Simd::Vector sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Simd::zero();
  }
  const float* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = a + r * a_stride;
  for (int64_t i = 0; i < count; ++i) {
    typename Simd::Vector right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = Simd::load(b + v * Simd::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Simd::Vector left = Simd::set(row[r][i]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Simd::fma(left, right[v], sums[r][v]);
    }
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Simd::store(c + r * c_stride + v * Simd::kLanes, sums[r][v]);
    }
  }
}

// The same for `columns` columns, a multiple of kLanes.
template <typename Simd, int kRows>
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t count,
              int64_t columns, float* c, int64_t c_stride) {
  constexpr int kWide = Simd::kVectors * Simd::kLanes;
  int64_t j = 0;
  for (; j + kWide <= columns; j += kWide) {
    multiply_tile<Simd, kRows, Simd::kVectors>(a, a_stride, b + j, b_stride, count, c + j,
                                               c_stride);
  }
  for (; j + 2 * Simd::kLanes <= columns; j += 2 * Simd::kLanes) {
    multiply_tile<Simd, kRows, 2>(a, a_stride, b + j, b_stride, count, c + j, c_stride);
  }
  for (; j < columns; j += Simd::kLanes) {
    multiply_tile<Simd, kRows, 1>(a, a_stride, b + j, b_stride, count, c + j, c_stride);
  }
}

template <typename Simd>
void multiply_rows(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                   int64_t count, int64_t columns, float* c, int64_t c_stride) {
  with_count<kQueryRows>(rows, [&](auto number) {
    multiply<Simd, decltype(number)::kValue>(a, a_stride, b, b_stride, count, columns, c, c_stride);
  });
}

// q . k[j] for one row, several keys at once so that sums don't wait for themselves.
template <typename Simd, int kKeys>
void dot_keys(const float* q, const float* k, int64_t d, float* scores) {
  typename Simd::Vector sums[kKeys];
#pragma GCC unroll 8
  for (int j = 0; j < kKeys; ++j) sums[j] = Simd::zero();
  for (int64_t i = 0; i < d; i += Simd::kLanes) {
    const typename Simd::Vector left = Simd::load(q + i);
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) {
      sums[j] = Simd::fma(left, Simd::load(k + j * d + i), sums[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kKeys; ++j) scores[j] = Simd::sum(sums[j]);
}

template <typename Simd>
void add_to(float* scores, const float* mask, int64_t count) {
  int64_t j = 0;
  for (; j + Simd::kLanes <= count; j += Simd::kLanes) {
    Simd::store(scores + j, Simd::add(Simd::load(scores + j), Simd::load(mask + j)));
  }
  for (; j < count; ++j) scores[j] += mask[j];
}

// Scores to most * tanh(score / most).
template <typename Simd>
void cap(float* scores, int64_t count, float most) {
  const auto factor = Simd::set(most);
  const auto capped = [&](typename Simd::Vector x) {
    return Simd::mul(factor, hyperbolic_tangent<Simd>(Simd::div(x, factor)));
  };
  int64_t j = 0;
  for (; j + Simd::kLanes <= count; j += Simd::kLanes) {
    Simd::store(scores + j, capped(Simd::load(scores + j)));
  }
  if (j < count) Simd::store(scores + j, count - j, capped(Simd::load(scores + j, count - j)));
}

// The largest of scores [0, padded) and the sink, where those outside [begin, end) don't count.
template <typename Simd>
float largest_score(float* scores, int64_t begin, int64_t end, int64_t padded, float sink) {
  const float lowest = -__builtin_inff();
  for (int64_t j = 0; j < begin; ++j) scores[j] = lowest;
  for (int64_t j = end; j < padded; ++j) scores[j] = lowest;
  auto peak = Simd::set(lowest);
  for (int64_t j = 0; j < padded; j += Simd::kLanes) {
    peak = Simd::max(peak, Simd::load(scores + j));
  }
  const float top = Simd::largest(peak);
  return top > sink ? top : sink;
}

// Scores [begin, end) to their exponentials, relative to the largest; zeros before, and behind up
// to `padded`, which is a multiple of kKeyPanel. Returns 1 / the sum of them and the sink's.
template <typename Simd>
float soften(float* scores, int64_t begin, int64_t end, int64_t padded, float sink) {
  const auto top = Simd::set(largest_score<Simd>(scores, begin, end, padded, sink));
  auto total = Simd::zero();
  const auto put = [&](int64_t j, typename Simd::Vector e) {
    Simd::store(scores + j, e);
    total = Simd::add(total, e);
  };
  const auto soft = [&](int64_t j) {
    return exponential<Simd>(Simd::sub(Simd::load(scores + j), top));
  };
  const auto put_part = [&](int64_t j) {
    float part[Simd::kLanes];
    Simd::store(part, soft(j));
    for (int64_t i = 0; i < Simd::kLanes; ++i) {
      part[i] = begin <= j + i && j + i < end ? part[i] : 0.0f;
    }
    put(j, Simd::load(part));
  };
  int64_t j = 0;
  for (; j + Simd::kLanes <= begin; j += Simd::kLanes) Simd::store(scores + j, Simd::zero());
  if (j < begin) {
    put_part(j);
    j += Simd::kLanes;
  }
  for (; j + Simd::kLanes <= end; j += Simd::kLanes) put(j, soft(j));
  if (j < end) {
    put_part(j);
    j += Simd::kLanes;
  }
  for (; j < padded; j += Simd::kLanes) Simd::store(scores + j, Simd::zero());
  const float rest = Simd::largest(exponential<Simd>(Simd::sub(Simd::set(sink), top)));
  return 1.0f / (Simd::sum(total) + rest);
}

// Rows that share a pass over keys and values: how many, the first panel with a key that one of
// them sees, where that key is, the end of those that the last one sees, and that up to whole
// panels, which is how far their scores are apart. All but `panel` count from there.
struct Pass {
  int64_t row, rows, panel, first, keys, padded;
};

// The scores of rows whose keys lie as they are.
template <typename Simd>
void score_unpacked(const AttentionRows& a, const Pass& pass) {
  const int64_t d = a.d;
  const float *k = a.k + pass.panel * d, *v = a.v + pass.panel * d;
  for (int64_t r = 0; r < pass.rows; ++r) {
    const float* q = a.q + (pass.row + r) * a.q_stride;
    float* scores = a.scores + r * pass.padded;
    int64_t j = pass.first;
    for (; j + 4 <= pass.keys; j += 4) {
      // Both come from memory, and the values are next.
      for (int64_t i = 0; i < 4 * d; i += kLine) __builtin_prefetch(v + j * d + i);
      dot_keys<Simd, 4>(q, k + j * d, d, scores + j);
    }
    for (; j < pass.keys; ++j) dot_keys<Simd, 1>(q, k + j * d, d, scores + j);
  }
}

// The scores of rows whose keys are packed.
template <typename Simd>
void score_packed(const AttentionRows& a, const Pass& pass) {
  const float* q = a.q + pass.row * a.q_stride;
  const float* k = a.packed_k + pass.panel * a.d;
  for (int64_t j = 0; j < pass.padded; j += kKeyPanel) {
    multiply_rows<Simd>(pass.rows, q, a.q_stride, k + j * a.d, kKeyPanel, a.d, kKeyPanel,
                        a.scores + j, pass.padded);
  }
}

// Scores to weights, but for the factors of their rows.
template <typename Simd>
void soften_rows(const AttentionRows& a, const Pass& pass, float (&factors)[kQueryRows]) {
  for (int64_t r = 0; r < pass.rows; ++r) {
    const int64_t row = pass.row + r;
    const int64_t begin = a.first_seen(row) - pass.panel, end = a.seen(row) - pass.panel;
    float* scores = a.scores + r * pass.padded;
    if (a.softcap != 0.0f) cap<Simd>(scores + begin, end - begin, a.softcap);
    if (a.mask != nullptr) {
      const float* mask = a.mask + row * a.mask_stride + pass.panel;
      add_to<Simd>(scores + begin, mask + begin, end - begin);
    }
    factors[r] = soften<Simd>(scores, begin, end, pass.padded, a.sink);
    if (a.nan_is_zero && factors[r] != factors[r]) {
      factors[r] = 0.0f;
      for (int64_t j = 0; j < pass.padded; ++j) scores[j] = 0.0f;
    }
  }
}

// The sums of values by weight.
template <typename Simd>
void add_values(const AttentionRows& a, const Pass& pass, const float (&factors)[kQueryRows]) {
  float* out = a.out + pass.row * a.out_stride;
  multiply_rows<Simd>(pass.rows, a.scores + pass.first, pass.padded,
                      a.v + (pass.panel + pass.first) * a.d, a.d, pass.keys - pass.first, a.d, out,
                      a.out_stride);
  for (int64_t r = 0; r < pass.rows; ++r) {
    const auto factor = Simd::set(factors[r]);
    for (int64_t i = 0; i < a.d; i += Simd::kLanes) {
      float* at = out + r * a.out_stride + i;
      Simd::store(at, Simd::mul(Simd::load(at), factor));
    }
  }
}

template <typename Simd>
void attend(const AttentionRows& a) {
  for (int64_t row = 0; row < a.rows; row += kQueryRows) {
    const int64_t rows = a.rows - row < kQueryRows ? a.rows - row : kQueryRows;
    const int64_t first = a.first_seen(row), panel = first / kKeyPanel * kKeyPanel;
    const int64_t keys = a.seen(row + rows - 1) - panel;
    const Pass pass{row, rows, panel, first - panel, keys, padded_keys(keys)};
    if (a.rows <= kUnpackedRows) {
      score_unpacked<Simd>(a, pass);
    } else {
      score_packed<Simd>(a, pass);
    }
    float factors[kQueryRows];
    soften_rows<Simd>(a, pass, factors);
    add_values<Simd>(a, pass, factors);
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_ATTENTION_ATTEND_H_
