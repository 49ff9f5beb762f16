#include "kernels/linear/linear_vnni256.h"

namespace qc::kernels {

QC_EACH_WIDTH(QC_DEFINE_LINEAR, avxvnni)

}  // namespace qc::kernels
