// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/norm/normalize.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {

void add_norm_f32_avx2(const NormRow& row) { add_norm<Avx2>(row); }

}  // namespace qc::kernels
