// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/attention/attend.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {

void attend_f32_avx2(const AttentionRows& rows) { attend<Avx2>(rows); }

}  // namespace qc::kernels
