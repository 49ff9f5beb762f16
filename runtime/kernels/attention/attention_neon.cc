// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/attention/attend.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {

void attend_f32_neon(const AttentionRows& rows) { attend<Neon>(rows); }

}  // namespace qc::kernels
