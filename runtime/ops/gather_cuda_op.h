#ifndef QC_OPS_GATHER_CUDA_OP_H_
#define QC_OPS_GATHER_CUDA_OP_H_

#include <deque>

#include "ops/op.h"

namespace qc::ops {

// Adds GatherW4 and GatherW8 on a GPU, for an execution provider of ONNX Runtime (a literal).
void add_gather_cuda_ops(std::deque<Op>& ops, const char* provider);

}  // namespace qc::ops

#endif  // QC_OPS_GATHER_CUDA_OP_H_
