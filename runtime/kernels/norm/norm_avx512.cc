// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/norm/normalize.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {

void add_norm_f32_avx512(const NormRow& row) { add_norm<Avx512>(row); }

}  // namespace qc::kernels
