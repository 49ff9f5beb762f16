#include <cmath>

#include "kernels/gate/gate.h"

namespace qc::kernels {

void swiglu_f32_reference(const float* gate, const float* up, std::int64_t count, float* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

}  // namespace qc::kernels
