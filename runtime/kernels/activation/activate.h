// The activations over one of the classes in kernels/simd/. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_ACTIVATION_ACTIVATE_H_
#define QC_KERNELS_ACTIVATION_ACTIVATE_H_

#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/simd/exponential.h"

namespace qc::kernels {
namespace {

// y = body(a, b), register by register.
template <typename Simd, typename Body>
void map(const float* a, const float* b, std::int64_t count, float* y, Body body) {
  std::int64_t i = 0;
  for (; i + Simd::kLanes <= count; i += Simd::kLanes) {
    Simd::store(y + i, body(Simd::load(a + i), Simd::load(b + i)));
  }
  if (i == count) return;
  float last_a[Simd::kLanes] = {}, last_b[Simd::kLanes] = {};
  const auto bytes = static_cast<std::size_t>(count - i) * sizeof(float);
  __builtin_memcpy(last_a, a + i, bytes);
  __builtin_memcpy(last_b, b + i, bytes);
  Simd::store(last_a, body(Simd::load(last_a), Simd::load(last_b)));
  __builtin_memcpy(y + i, last_a, bytes);
}

// x / (1 + e^-u)
template <typename Simd>
typename Simd::Vector opened(typename Simd::Vector x, typename Simd::Vector u) {
  const auto e = exponential<Simd>(Simd::sub(Simd::zero(), u));
  return Simd::div(x, Simd::add(Simd::set(1.0f), e));
}

template <typename Simd>
void swiglu(const float* gate, const float* up, std::int64_t count, float* y) {
  using Vector = typename Simd::Vector;
  map<Simd>(gate, up, count, y,
            [](Vector x, Vector other) { return Simd::mul(opened<Simd>(x, x), other); });
}

// Beyond, P(N < -x) is less than any float32.
constexpr float kFar = 14.0f;

// max(x, 0) - |x| * P(N > |x|). With z = |x| / sqrt(2) and t = 1 / (1 + 0.325 z), that probability
// is e^(-z^2) * p(t) / 2, where p is the polynomial of degree 8 without a constant term whose
// largest relative error up to z = 6.6 is least: 4e-8.
template <typename Simd>
typename Simd::Vector gelu_by_tail(typename Simd::Vector x) {
  const auto size = Simd::min(Simd::set(kFar), Simd::max(Simd::sub(Simd::zero(), x), x));
  const auto t = Simd::div(Simd::set(1.0f),
                           Simd::fma(Simd::set(0.325f * 0.707106781f), size, Simd::set(1.0f)));
  constexpr float kTerms[] = {0.284636394f, -0.263606992f, 0.281738598f,  -0.0169484621f,
                              0.111474713f, 0.0880785573f, 0.0919066227f, 0.0f};
  auto p = Simd::set(-0.0772794417f);
#pragma GCC unroll 8
  for (const float term : kTerms) p = Simd::fma(p, t, Simd::set(term));
  const auto e = exponential<Simd>(Simd::mul(Simd::mul(size, size), Simd::set(-0.5f)));
  return Simd::sub(Simd::max(Simd::zero(), x), Simd::mul(size, Simd::mul(p, e)));
}

// (1 + tanh(u)) / 2 = 1 / (1 + e^(-2 u))
template <typename Simd>
typename Simd::Vector gelu_by_tanh(typename Simd::Vector x) {
  x = Simd::max(Simd::set(-kFar), x);
  const auto cubic = Simd::fma(Simd::mul(x, x), Simd::set(0.0713548163f), Simd::set(1.59576912f));
  return opened<Simd>(x, Simd::mul(x, cubic));
}

template <typename Simd>
void gelu(const float* x, std::int64_t count, bool by_tanh, float* y) {
  using Vector = typename Simd::Vector;
  if (by_tanh) {
    map<Simd>(x, x, count, y, [](Vector v, Vector) { return gelu_by_tanh<Simd>(v); });
  } else {
    map<Simd>(x, x, count, y, [](Vector v, Vector) { return gelu_by_tail<Simd>(v); });
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_ACTIVATION_ACTIVATE_H_
