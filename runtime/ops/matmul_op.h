#ifndef QC_OPS_MATMUL_OP_H_
#define QC_OPS_MATMUL_OP_H_

#include <deque>

#include "kernels/dispatch/dispatch.h"
#include "ops/op.h"

namespace qc::ops {

// Adds MatMulW4A8, MatMulW8A8 and their static forms for each type of X. `kernels` is used by every
// kernel made from them.
void add_matmul_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels);

}  // namespace qc::ops

#endif  // QC_OPS_MATMUL_OP_H_
