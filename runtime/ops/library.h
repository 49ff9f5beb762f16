// The ops of this library, each declared here and defined in a file of its name.
#ifndef QC_OPS_LIBRARY_H_
#define QC_OPS_LIBRARY_H_

#include <deque>

#include "ops/op.h"

namespace qc::ops {

// All of them. There are several libraries of one domain (ONNX Runtime takes only one a session),
// and each has a definition of its own.
void add_ops(std::deque<Op>& ops);

void add_activation_ops(std::deque<Op>& ops);  // SwiGLU, Gelu and GeluTanh
void add_attention_ops(std::deque<Op>& ops);   // GroupQueryAttention and GroupQueryAttentionSink
void add_multi_head_attention_ops(std::deque<Op>& ops);
void add_embedding_ops(std::deque<Op>& ops);  // each width, for each type of ids
void add_linear_ops(std::deque<Op>& ops);     // each width and form, for each type of X
void add_norm_ops(std::deque<Op>& ops);       // AddRMSNormalization and AddLayerNormalization

// The same on a GPU, for an execution provider of ONNX Runtime (a literal).
void add_linear_cuda_ops(std::deque<Op>& ops, const char* provider);
void add_embedding_cuda_ops(std::deque<Op>& ops, const char* provider);

}  // namespace qc::ops

#endif  // QC_OPS_LIBRARY_H_
