// Activations between the matrix products of an MLP, value by value.
#ifndef QC_KERNELS_ACTIVATION_ACTIVATION_H_
#define QC_KERNELS_ACTIVATION_ACTIVATION_H_

#include <cstdint>

namespace qc::kernels {

// y = gate / (1 + e^-gate) * up, `count` values each.
using SwiGlu = void (*)(const float* gate, const float* up, std::int64_t count, float* y);

// y = x * P(N < x), N of the standard normal distribution; or the approximation by tanh,
// y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))).
using Gelu = void (*)(const float* x, std::int64_t count, bool by_tanh, float* y);

#define QC_SIMD(architecture, simd, ...)                                                    \
  void swiglu_f32_##simd(const float* gate, const float* up, std::int64_t count, float* y); \
  void gelu_f32_##simd(const float* x, std::int64_t count, bool by_tanh, float* y);
#include "kernels/dispatch/isas.inc"

}  // namespace qc::kernels

#endif  // QC_KERNELS_ACTIVATION_ACTIVATION_H_
