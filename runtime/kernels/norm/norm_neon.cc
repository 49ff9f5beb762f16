// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/norm/normalize.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {

void add_norm_f32_neon(const NormRow& row) { add_norm<Neon>(row); }

}  // namespace qc::kernels
