// The quantizer over one of the classes in kernels/simd/. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_QUANTIZE_QUANTIZE_ROW_H_
#define QC_KERNELS_QUANTIZE_QUANTIZE_ROW_H_

#include <cstdint>

#include "kernels/inline.h"
#include "kernels/quantize/quantize.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr std::uint32_t kInfinityBits = 0x7f800000;

// body(registers, index, count) for runs of `count` values, of which the last may be short: zeros
// stand for what is missing.
template <typename Simd, typename Body>
QC_INLINE void each_run(const float* x, int64_t count, Body body) {
  constexpr int kVectors = Simd::kRunVectors;
  constexpr int64_t kRun = kVectors * Simd::kLanes;
  typename Simd::Vector run[kVectors];
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun) {
    for (int v = 0; v < kVectors; ++v) run[v] = Simd::load(x + i + v * Simd::kLanes);
    body(run, i, kRun);
  }
  if (i == count) return;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = i + v * Simd::kLanes;
    run[v] = Simd::load(x + at, count - at);
  }
  body(run, i, count - i);
}

// The largest magnitude, as the bits of a float.
template <typename Simd>
std::uint32_t peak_bits(const float* x, int64_t count) {
  typename Simd::Ints peaks[Simd::kRunVectors];
  for (auto& peak : peaks) peak = Simd::set_ints(0);
  each_run<Simd>(x, count, [&](const auto& run, int64_t, int64_t) {
    for (int v = 0; v < Simd::kRunVectors; ++v) {
      peaks[v] = Simd::larger_magnitude(peaks[v], run[v]);
    }
  });
  std::uint32_t result = 0;
  for (const auto& peak : peaks) {
    const std::uint32_t bits = Simd::largest_int(peak);
    result = bits > result ? bits : result;
  }
  return result;
}

// Quantizes `count` values with one scale; returns the sum of their codes.
template <typename Simd>
std::int32_t quantize_run(const float* x, std::int8_t* codes, int64_t count, float scale) {
  const auto scales = Simd::set(scale), high = Simd::set(127.0f), low = Simd::set(-127.0f);
  auto sum = Simd::set_ints(0);
  each_run<Simd>(x, count, [&](const auto& run, int64_t i, int64_t width) {
    typename Simd::Ints values[Simd::kRunVectors];
    for (int v = 0; v < Simd::kRunVectors; ++v) {
      const auto quotient = Simd::min(Simd::div(run[v], scales), high);
      values[v] = Simd::round_to_ints(Simd::max(quotient, low));
      sum = Simd::add_ints(sum, values[v]);
    }
    Simd::store_codes(codes + i, width, values);
  });
  return Simd::sum_ints(sum);
}

// The scale of values whose largest magnitude has these bits.
inline float scale_of(std::uint32_t bits) {
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
  const float scale = magnitude / 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

template <typename Simd>
void quantize_row(const QuantizeRow& row) {
  const int64_t groups = ceil_div(row.k, row.group_size);
  const std::uint32_t peak = peak_bits<Simd>(row.x, row.k);
  for (int64_t i = row.k; i < row.padded_k; ++i) row.codes[i] = 0;
  if (peak >= kInfinityBits) {
    *row.scale = __builtin_nanf("");
    for (int64_t i = 0; i < row.k; ++i) row.codes[i] = 0;
    for (int64_t g = 0; g < groups; ++g) row.sums[g] = 0;
    return;
  }
  const float scale = row.static_scale != 0.0f ? row.static_scale : scale_of(peak);
  *row.scale = scale;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * row.group_size, left = row.k - first;
    row.sums[g] = quantize_run<Simd>(row.x + first, row.codes + first,
                                     left < row.group_size ? left : row.group_size, scale);
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_QUANTIZE_QUANTIZE_ROW_H_
