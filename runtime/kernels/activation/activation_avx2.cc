// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/activation/activate.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {

void swiglu_f32_avx2(const float* gate, const float* up, std::int64_t count, float* y) {
  swiglu<Avx2>(gate, up, count, y);
}

void gelu_f32_avx2(const float* x, std::int64_t count, bool by_tanh, float* y) {
  gelu<Avx2>(x, count, by_tanh, y);
}

}  // namespace qc::kernels
