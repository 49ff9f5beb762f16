// Internal linkage throughout: see matmul_avx512vnni.cc.
#include "kernels/gate/swiglu.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {

void swiglu_f32_neon(const float* gate, const float* up, std::int64_t count, float* y) {
  swiglu<Neon>(gate, up, count, y);
}

}  // namespace qc::kernels
