// The EVEX form: AVX-512 VNNI on 256-bit registers, which are twice as many as the VEX form has.
#include "kernels/matmul/matmul_vnni256.h"

namespace qc::kernels {

QC_EACH_WIDTH(QC_DEFINE_MATMUL, avx512vnni_256)

}  // namespace qc::kernels
