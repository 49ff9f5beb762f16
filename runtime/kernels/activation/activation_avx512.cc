// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/activation/activate.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {

void swiglu_f32_avx512(const float* gate, const float* up, std::int64_t count, float* y) {
  swiglu<Avx512>(gate, up, count, y);
}

void gelu_f32_avx512(const float* x, std::int64_t count, bool by_tanh, float* y) {
  gelu<Avx512>(x, count, by_tanh, y);
}

}  // namespace qc::kernels
