#include "ops/library.h"

namespace qc::ops {

void add_ops(std::deque<Op>& ops) {
  add_linear_ops(ops);
  add_embedding_ops(ops);
  add_attention_ops(ops);
  add_multi_head_attention_ops(ops);
  add_norm_ops(ops);
  add_activation_ops(ops);
}

}  // namespace qc::ops
