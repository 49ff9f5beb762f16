#ifndef QC_OPS_MATMUL_CUDA_OP_H_
#define QC_OPS_MATMUL_CUDA_OP_H_

#include <deque>

#include "ops/op.h"

namespace qc::ops {

// Adds MatMulW4A8, MatMulW8A8 and their static forms on a GPU, for an execution provider of ONNX
// Runtime (a literal).
void add_matmul_cuda_ops(std::deque<Op>& ops, const char* provider);

}  // namespace qc::ops

#endif  // QC_OPS_MATMUL_CUDA_OP_H_
