#include "ops/library.h"

namespace qc::ops {

// The glue of the CUDA ops as ops for the CPU, on the emulated GPU.
void add_ops(std::deque<Op>& ops) {
  add_linear_cuda_ops(ops, "CPUExecutionProvider");
  add_embedding_cuda_ops(ops, "CPUExecutionProvider");
}

}  // namespace qc::ops
