// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/activation/activate.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {

void swiglu_f32_neon(const float* gate, const float* up, std::int64_t count, float* y) {
  swiglu<Neon>(gate, up, count, y);
}

void gelu_f32_neon(const float* x, std::int64_t count, bool by_tanh, float* y) {
  gelu<Neon>(x, count, by_tanh, y);
}

}  // namespace qc::kernels
