// The VEX form: CPUs with AVX-VNNI and no AVX-512.
#include "kernels/matmul/matmul_vnni256.h"

namespace qc::kernels {

QC_EACH_WIDTH(QC_DEFINE_MATMUL, avxvnni)

}  // namespace qc::kernels
