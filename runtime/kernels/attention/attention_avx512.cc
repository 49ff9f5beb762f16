// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/attention/attend.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {

void attend_f32_avx512(const AttentionRows& rows) { attend<Avx512>(rows); }

}  // namespace qc::kernels
