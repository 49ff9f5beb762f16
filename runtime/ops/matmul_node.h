// A node of the MatMul family: its attributes, and the checks of every tensor it gets. The same on
// every device.
#ifndef QC_OPS_MATMUL_NODE_H_
#define QC_OPS_MATMUL_NODE_H_

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "ops/layer_tensors.h"
#include "ops/op.h"
#include "ops/packed_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {

struct MatMulForm {
  const char* name;
  int bits;
  bool is_static;
};
inline constexpr MatMulForm kMatMulForms[] = {
    {"MatMulW4A8", 4, false},
    {"MatMulW4A8Static", 4, true},
    {"MatMulW8A8", 8, false},
    {"MatMulW8A8Static", 8, true},
};

// The tensors of one run, checked.
struct MatMulCall : LayerCall {
  PackedInputs::Pointers packed;
};

class MatMulNode {
 public:
  enum Input : std::size_t { kX, kPacked, kBias = 4, kXScale = 5 };

  MatMulNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op);

  // Checks the tensors of this run and makes the outputs.
  MatMulCall read(OrtKernelContext* context) const;

  const OrtApi* api() const { return api_; }
  const std::string& label() const { return label_; }
  const MatMulForm& form() const { return form_; }
  const MatrixAttributes& matrix() const { return matrix_; }
  int element_type() const { return element_type_; }                   // of X and the outputs
  std::int64_t activation_block() const { return activation_block_; }  // K or group_size

 private:
  MatMulNode(const OrtApi* api, const Node& node, const MatMulForm& form, int element_type);

  const OrtApi* api_;
  const MatMulForm& form_;
  std::string label_;
  int element_type_;
  MatrixAttributes matrix_;
  PackedInputs packed_;
  LayerTensors layer_;
  std::int64_t activation_block_;
};

// Adds the ops of the family for each type of X, with `Kernel` as their class. `adapt(op)` may
// change each of them.
template <typename Kernel, typename Adapt>
void add_matmul_family(std::deque<Op>& ops, Adapt&& adapt) {
  for (const MatMulForm& form : kMatMulForms) {
    for (const int type : {abi::kFloat, abi::kFloat16, abi::kBfloat16}) {
      std::vector<int> inputs{type, abi::kUint8, abi::kFloat16, abi::kUint8, abi::kFloat};
      if (form.is_static) inputs.push_back(abi::kFloat);
      Op& op = ops.emplace_back(make_op(form.name, std::move(inputs), {type, type, type}, 1));
      op.InferOutputShapeFn = infer_matmul;
      set_kernel<Kernel>(op);
      adapt(op);
    }
  }
}

}  // namespace qc::ops

#endif  // QC_OPS_MATMUL_NODE_H_
