// The gate of an MLP:  y = gate / (1 + e^-gate) * up
#ifndef QC_KERNELS_GATE_GATE_H_
#define QC_KERNELS_GATE_GATE_H_

#include <cstdint>

namespace qc::kernels {

// `count` values each.
using SwiGlu = void (*)(const float* gate, const float* up, std::int64_t count, float* y);

void swiglu_f32_reference(const float* gate, const float* up, std::int64_t count, float* y);
void swiglu_f32_avx2(const float* gate, const float* up, std::int64_t count, float* y);
void swiglu_f32_avx512(const float* gate, const float* up, std::int64_t count, float* y);
void swiglu_f32_neon(const float* gate, const float* up, std::int64_t count, float* y);

}  // namespace qc::kernels

#endif  // QC_KERNELS_GATE_GATE_H_
