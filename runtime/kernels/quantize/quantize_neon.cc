// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/quantize/quantize_row.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {

void quantize_f32_s8_neon(const QuantizeRow& row) { quantize_row<Neon>(row); }

}  // namespace qc::kernels
