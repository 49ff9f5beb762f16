#ifndef QC_OPS_MULTI_HEAD_ATTENTION_OP_H_
#define QC_OPS_MULTI_HEAD_ATTENTION_OP_H_

#include <deque>

#include "kernels/dispatch/dispatch.h"
#include "ops/op.h"

namespace qc::ops {

// Adds MultiHeadAttention.
void add_multi_head_attention_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels);

}  // namespace qc::ops

#endif  // QC_OPS_MULTI_HEAD_ATTENTION_OP_H_
