// The norm kernel over one of the classes in kernels/simd/. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_NORM_NORMALIZE_H_
#define QC_KERNELS_NORM_NORMALIZE_H_

#include <cstdint>

#include "kernels/norm/norm.h"

namespace qc::kernels {
namespace {

using std::int64_t;

// The sum over i of a value: `wide` and `single` add that of a full register or a single float to a
// sum. Multiply-adds of single floats are spelled out everywhere: left to the compiler, they would
// round otherwise in the loops that it makes for memory that does not overlap.
template <typename Simd, typename Wide, typename Single>
float total(int64_t n, Wide&& wide, Single&& single) {
  constexpr int kSums = 4;  // so that additions don't wait for each other
  typename Simd::Vector sums[kSums] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  int64_t i = 0;
  for (; i + kSums * Simd::kLanes <= n; i += kSums * Simd::kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) sums[s] = wide(i + s * Simd::kLanes, sums[s]);
  }
  for (; i + Simd::kLanes <= n; i += Simd::kLanes) sums[0] = wide(i, sums[0]);
  float rest = 0.0f;
  for (; i < n; ++i) rest = single(i, rest);
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3]))) + rest;
}

template <typename Simd>
void add_norm(const NormRow& row) {
  using Vector = typename Simd::Vector;
  const bool centers = row.bias != nullptr;
  const auto n = static_cast<float>(row.n);
  float squares = 0.0f;
  const float first = total<Simd>(
      row.n,
      [&](int64_t i, Vector sum) {
        const Vector value = Simd::add(Simd::load(row.x + i), Simd::load(row.skip + i));
        Simd::store(row.sum + i, value);
        return centers ? Simd::add(sum, value) : Simd::fma(value, value, sum);
      },
      [&](int64_t i, float sum) {
        const float value = row.x[i] + row.skip[i];
        row.sum[i] = value;
        return centers ? sum + value : __builtin_fmaf(value, value, sum);
      });
  float mean = 0.0f;
  if (centers) {
    mean = first / n;
    const Vector middle = Simd::set(mean);
    squares = total<Simd>(
        row.n,
        [&](int64_t i, Vector sum) {
          const Vector value = Simd::sub(Simd::load(row.sum + i), middle);
          return Simd::fma(value, value, sum);
        },
        [&](int64_t i, float sum) {
          const float value = row.sum[i] - mean;
          return __builtin_fmaf(value, value, sum);
        });
  } else {
    squares = first;
  }
  const float factor = 1.0f / __builtin_sqrtf(squares / n + row.epsilon);
  const Vector middle = Simd::set(mean), factors = Simd::set(factor);
  int64_t i = 0;
  for (; i + Simd::kLanes <= row.n; i += Simd::kLanes) {
    const Vector scaled = Simd::mul(Simd::sub(Simd::load(row.sum + i), middle), factors);
    const Vector shift = centers ? Simd::load(row.bias + i) : Simd::zero();
    Simd::store(row.y + i, Simd::fma(scaled, Simd::load(row.weight + i), shift));
  }
  for (; i < row.n; ++i) {
    const float scaled = (row.sum[i] - mean) * factor;
    row.y[i] = __builtin_fmaf(scaled, row.weight[i], centers ? row.bias[i] : 0.0f);
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_NORM_NORMALIZE_H_
