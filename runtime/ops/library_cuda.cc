#include "ops/library.h"

namespace qc::ops {

// Only what has no function body that runs well on a GPU. Norms, activations and attention are left
// out: a kernel for the CPU would pull them off the GPU, where ONNX Runtime runs their bodies.
void add_ops(std::deque<Op>& ops) {
  add_linear_cuda_ops(ops, "CUDAExecutionProvider");
  add_embedding_cuda_ops(ops, "CUDAExecutionProvider");
  add_linear_ops(ops);
  add_embedding_ops(ops);
}

}  // namespace qc::ops
