// Runs the kernels of one matrix product over the session's threads.
#ifndef QC_OPS_MATMUL_COMPUTE_H_
#define QC_OPS_MATMUL_COMPUTE_H_

#include <array>
#include <cstdint>

#include "kernels/dispatch/dispatch.h"
#include "ops/matmul_node.h"
#include "ops/op.h"

namespace qc::ops {

struct MatMulJob {
  const kernels::KernelTable* kernels;
  int bits;          // of the weights
  int element_type;  // of x and the outputs
  const void* x;     // [rows, k]
  std::int64_t rows;
  std::int64_t activation_block;  // k or group_size
  float static_scale;             // 0: dynamic
  kernels::Weights weights;
  std::array<OutputRange, 3> outputs;
};

void run(const OrtApi* api, OrtKernelContext* context, const MatMulJob& job);

}  // namespace qc::ops

#endif  // QC_OPS_MATMUL_COMPUTE_H_
