// The norm kernel over one of the classes in kernels/simd/. Internal linkage throughout: see
// matmul_avx512vnni.cc.
#ifndef QC_KERNELS_NORM_NORMALIZE_H_
#define QC_KERNELS_NORM_NORMALIZE_H_

#include <cstdint>

#include "kernels/norm/norm.h"

namespace qc::kernels {
namespace {

using std::int64_t;

// The sum over i of value(lanes from i on), where `value` takes a full register or a single float.
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
  for (; i < n; ++i) rest += single(i);
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
      [&](int64_t i) {
        const float value = row.x[i] + row.skip[i];
        row.sum[i] = value;
        return centers ? value : value * value;
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
        [&](int64_t i) { return (row.sum[i] - mean) * (row.sum[i] - mean); });
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
    const float scaled = (row.sum[i] - mean) * factor * row.weight[i];
    row.y[i] = centers ? scaled + row.bias[i] : scaled;
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_NORM_NORMALIZE_H_
