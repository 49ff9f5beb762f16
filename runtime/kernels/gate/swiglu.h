// The gate over one of the classes in kernels/simd/. Internal linkage throughout: see
// matmul_avx512vnni.cc.
#ifndef QC_KERNELS_GATE_SWIGLU_H_
#define QC_KERNELS_GATE_SWIGLU_H_

#include <cstdint>

#include "kernels/gate/gate.h"
#include "kernels/simd/exponential.h"

namespace qc::kernels {
namespace {

template <typename Simd>
typename Simd::Vector gated(typename Simd::Vector gate, typename Simd::Vector up) {
  const auto e = exponential<Simd>(Simd::sub(Simd::zero(), gate));
  return Simd::mul(Simd::div(gate, Simd::add(Simd::set(1.0f), e)), up);
}

template <typename Simd>
void swiglu(const float* gate, const float* up, std::int64_t count, float* y) {
  std::int64_t i = 0;
  for (; i + Simd::kLanes <= count; i += Simd::kLanes) {
    Simd::store(y + i, gated<Simd>(Simd::load(gate + i), Simd::load(up + i)));
  }
  if (i == count) return;
  float gates[Simd::kLanes] = {}, ups[Simd::kLanes] = {};
  const auto bytes = static_cast<std::size_t>(count - i) * sizeof(float);
  __builtin_memcpy(gates, gate + i, bytes);
  __builtin_memcpy(ups, up + i, bytes);
  Simd::store(gates, gated<Simd>(Simd::load(gates), Simd::load(ups)));
  __builtin_memcpy(y + i, gates, bytes);
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_GATE_SWIGLU_H_
