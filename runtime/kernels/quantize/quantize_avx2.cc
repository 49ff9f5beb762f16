// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/quantize/quantize_row.h"
#include "kernels/simd/avx2.h"

namespace qc::kernels {

void quantize_f32_s8_avx2(const QuantizeRow& row) { quantize_row<Avx2>(row); }

}  // namespace qc::kernels
