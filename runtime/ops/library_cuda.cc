#include "ops/gather_cuda_op.h"
#include "ops/gather_op.h"
#include "ops/library.h"
#include "ops/matmul_cuda_op.h"
#include "ops/matmul_op.h"

namespace qc::ops {

// Only what has no function body that runs well on a GPU. Norms, activations and attention are left
// out: a kernel for the CPU would pull them off the GPU, where ONNX Runtime runs their bodies.
void add_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels) {
  add_matmul_cuda_ops(ops, "CUDAExecutionProvider");
  add_gather_cuda_ops(ops, "CUDAExecutionProvider");
  add_matmul_ops(ops, kernels);
  add_gather_ops(ops);
}

}  // namespace qc::ops
