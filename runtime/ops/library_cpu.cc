#include "ops/activation_op.h"
#include "ops/attention_op.h"
#include "ops/gather_op.h"
#include "ops/library.h"
#include "ops/matmul_op.h"
#include "ops/multi_head_attention_op.h"
#include "ops/norm_op.h"

namespace qc::ops {

void add_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels) {
  add_matmul_ops(ops, kernels);
  add_gather_ops(ops);
  add_attention_ops(ops, kernels);
  add_multi_head_attention_ops(ops, kernels);
  add_norm_ops(ops, kernels);
  add_activation_ops(ops, kernels);
}

}  // namespace qc::ops
