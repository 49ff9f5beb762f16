// What the kernels of the Linear ops share, whatever device they run on.
#ifndef QC_OPS_LINEAR_NODE_H_
#define QC_OPS_LINEAR_NODE_H_

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "ops/layer_tensors.h"
#include "ops/matrix_attributes.h"
#include "ops/op.h"
#include "ops/plane_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {

struct LinearForm {
  const char* name;
  int weights;  // their form
  bool is_static;
};
#define QC_LINEAR_FORMS(letter, bits, ...)                             \
  {"Linear" #letter #bits "A8", kernels::kForm##letter + bits, false}, \
      {"Linear" #letter #bits "A8Static", kernels::kForm##letter + bits, true},
inline constexpr LinearForm kLinearForms[] = {QC_EACH_FORM(QC_LINEAR_FORMS)};
#undef QC_LINEAR_FORMS

// One run.
struct LinearCall : LayerCall {
  kernels::PlaneWeights weights;  // without a bias
};

class LinearNode {
 public:
  static constexpr std::size_t kX = 0, kWeights = 1;

  LinearNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : LinearNode(api, Node(api, info, op.name), form_of(kLinearForms, op), op) {}

  const OrtApi* api() const { return api_; }
  const std::string& label() const { return label_; }
  int form() const { return form_; }
  int element_type() const { return element_type_; }  // of X and the outputs
  const MatrixAttributes& matrix() const { return matrix_; }

  static std::size_t bias_index(int form) { return kWeights + PlaneInputs::types(form).size(); }

  LinearCall read(OrtKernelContext* context) const {
    const kernels::PlaneWeights weights = weights_.read(context);
    return {layer_.read(context), weights};
  }

 private:
  LinearNode(const OrtApi* api, const Node& node, const LinearForm& form, const Op& op)
      : api_(api),
        label_(node.label()),
        form_(form.weights),
        element_type_(op.input_types[kX]),
        matrix_(read_matrix(node, form.weights)),
        weights_(api, node, matrix_, form.weights, kWeights),
        layer_(api, node, matrix_.k, matrix_.n, bias_index(form.weights), form.is_static) {}

  const OrtApi* api_;
  std::string label_;
  int form_;
  int element_type_;
  MatrixAttributes matrix_;
  PlaneInputs weights_;
  LayerTensors layer_;
};

// Adds the Linear ops for each type of X, with `Kernel` as their class. `adapt(op, form)` may
// change each of them.
template <typename Kernel, typename Adapt>
void add_linear_family(std::deque<Op>& ops, Adapt&& adapt) {
  for (const LinearForm& form : kLinearForms) {
    for (const int type : {abi::kFloat, abi::kFloat16, abi::kBfloat16}) {
      std::vector<int> inputs{type};
      for (const int each : PlaneInputs::types(form.weights)) inputs.push_back(each);
      inputs.push_back(abi::kFloat);
      if (form.is_static) inputs.push_back(abi::kFloat);
      Op& op = ops.emplace_back(make_op(form.name, std::move(inputs), {type, type, type}, 1));
      op.InferOutputShapeFn = infer_linear;
      set_kernel<Kernel>(op);
      adapt(op, form);
    }
  }
}

}  // namespace qc::ops

#endif  // QC_OPS_LINEAR_NODE_H_
