#include <cmath>

#include "kernels/activation/activation.h"

namespace qc::kernels {

void swiglu_f32_reference(const float* gate, const float* up, std::int64_t count, float* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void gelu_f32_reference(const float* x, std::int64_t count, bool by_tanh, float* y) {
  constexpr double kRoot = 0.70710678118654752;       // sqrt(1 / 2)
  constexpr double kSlope = 2 * 0.79788456080286536;  // 2 sqrt(2 / pi)
  for (std::int64_t i = 0; i < count; ++i) {
    const double v = x[i];
    const double share = by_tanh ? 1.0 / (1.0 + std::exp(-kSlope * (v + 0.044715 * v * v * v)))
                                 : 0.5 * std::erfc(-v * kRoot);
    // Minus infinity times zero is the limit, zero.
    y[i] = share == 0.0 ? 0.0f : static_cast<float>(v * share);
  }
}

}  // namespace qc::kernels
