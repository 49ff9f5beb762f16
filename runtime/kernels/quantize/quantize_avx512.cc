// Internal linkage throughout: see linear_avx512vnni.cc.
#include "kernels/quantize/quantize_row.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {

void quantize_f32_s8_avx512(const QuantizeRow& row) { quantize_row<Avx512>(row); }

}  // namespace qc::kernels
