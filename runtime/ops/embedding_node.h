// What the kernels of the Embedding ops share, whatever device they run on.
#ifndef QC_OPS_EMBEDDING_NODE_H_
#define QC_OPS_EMBEDDING_NODE_H_

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "ops/lookup.h"
#include "ops/matrix_attributes.h"
#include "ops/op.h"
#include "ops/plane_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {

struct EmbeddingForm {
  const char* name;
  int bits;
};
#define QC_EMBEDDING_FORM(bits, ...) {"EmbeddingW" #bits, bits},
inline constexpr EmbeddingForm kEmbeddingForms[] = {QC_EACH_LINEAR_WIDTH(QC_EMBEDDING_FORM)};
#undef QC_EMBEDDING_FORM

// One run.
struct EmbeddingCall : LookUpCall {
  kernels::PlaneWeights weights;
};

class EmbeddingNode {
 public:
  EmbeddingNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : EmbeddingNode(api, Node(api, info, op.name), form_of(kEmbeddingForms, op).bits) {}

  const OrtApi* api() const { return api_; }
  const std::string& label() const { return label_; }
  int bits() const { return bits_; }
  const MatrixAttributes& matrix() const { return matrix_; }

  EmbeddingCall read(OrtKernelContext* context) const {
    const kernels::PlaneWeights weights = weights_.read(context);
    return {read_look_up(api_, context, matrix_.k), weights};
  }

 private:
  EmbeddingNode(const OrtApi* api, const Node& node, int bits)
      : api_(api),
        label_(node.label()),
        bits_(bits),
        matrix_(read_layout_2(node, bits)),
        weights_(api, node, matrix_, bits, 1) {}

  const OrtApi* api_;
  std::string label_;
  int bits_;
  MatrixAttributes matrix_;
  PlaneInputs weights_;
};

// Adds the Embedding ops for each type of ids, with `Kernel` as their class. `adapt(op)` may change
// each of them.
template <typename Kernel, typename Adapt>
void add_embedding_family(std::deque<Op>& ops, Adapt&& adapt) {
  for (const EmbeddingForm& form : kEmbeddingForms) {
    for (const int type : {abi::kInt64, abi::kInt32}) {
      std::vector<int> inputs{type};
      for (const int each : PlaneInputs::types(form.bits)) inputs.push_back(each);
      Op& op = ops.emplace_back(make_op(form.name, std::move(inputs), {abi::kFloat}, 1));
      op.InferOutputShapeFn = infer_gather;
      set_kernel<Kernel>(op);
      adapt(op);
    }
  }
}

}  // namespace qc::ops

#endif  // QC_OPS_EMBEDDING_NODE_H_
