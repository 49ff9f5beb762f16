#include "kernels/linear/linear_vnni256.h"

namespace qc::kernels {

QC_EACH_FORM(QC_DEFINE_LINEAR, avx512vnni_256)

}  // namespace qc::kernels
