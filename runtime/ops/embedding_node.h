// What the kernels of the Embedding ops share, whatever device they run on.
#ifndef QC_OPS_EMBEDDING_NODE_H_
#define QC_OPS_EMBEDDING_NODE_H_

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "ops/matrix_attributes.h"
#include "ops/op.h"
#include "ops/plane_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {

struct EmbeddingForm {
  const char* name;
  int weights;  // their form
};
#define QC_EMBEDDING_FORM(letter, bits, ...) \
  {"Embedding" #letter #bits, kernels::kForm##letter + bits},
inline constexpr EmbeddingForm kEmbeddingForms[] = {QC_EACH_FORM(QC_EMBEDDING_FORM)};
#undef QC_EMBEDDING_FORM

// One run: ids [count], and where their rows [count, k] go.
struct EmbeddingCall {
  const void* ids;
  bool wide_ids;  // int64 rather than int32
  std::int64_t count;
  float* out;
  kernels::PlaneWeights weights;
};

class EmbeddingNode {
 public:
  EmbeddingNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : EmbeddingNode(api, Node(api, info, op.name), form_of(kEmbeddingForms, op).weights) {}

  const OrtApi* api() const { return api_; }
  const std::string& label() const { return label_; }
  int form() const { return form_; }
  const MatrixAttributes& matrix() const { return matrix_; }

  EmbeddingCall read(OrtKernelContext* context) const {
    const kernels::PlaneWeights weights = weights_.read(context);
    const OrtValue* ids = input_of(api_, context, 0);
    TensorInfo info = info_of(api_, ids);
    EmbeddingCall call{data_of(api_, ids), info.type == abi::kInt64, 1, nullptr, weights};
    for (const std::int64_t dim : info.shape) call.count *= dim;
    info.shape.push_back(matrix_.k);
    call.out = static_cast<float*>(data_of(api_, output_of(api_, context, 0, info.shape)));
    return call;
  }

 private:
  EmbeddingNode(const OrtApi* api, const Node& node, int form)
      : api_(api),
        label_(node.label()),
        form_(form),
        matrix_(read_matrix(node, form)),
        weights_(api, node, matrix_, form, 1) {}

  const OrtApi* api_;
  std::string label_;
  int form_;
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
      for (const int each : PlaneInputs::types(form.weights)) inputs.push_back(each);
      Op& op = ops.emplace_back(make_op(form.name, std::move(inputs), {abi::kFloat}, 1));
      op.InferOutputShapeFn = infer_embedding;
      set_kernel<Kernel>(op);
      adapt(op);
    }
  }
}

}  // namespace qc::ops

#endif  // QC_OPS_EMBEDDING_NODE_H_
