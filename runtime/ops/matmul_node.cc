#include "ops/matmul_node.h"

#include <string>

namespace qc::ops {

MatMulNode::MatMulNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
    : MatMulNode(api, Node(api, info, op.name), form_of(kMatMulForms, op), op.input_types[kX]) {}

MatMulNode::MatMulNode(const OrtApi* api, const Node& node, const MatMulForm& form,
                       int element_type)
    : api_(api),
      form_(form),
      label_(node.label()),
      element_type_(element_type),
      matrix_(read_layout_1(node)),
      packed_(api, node, matrix_, form.bits, kPacked),
      layer_(api, node, matrix_.k, matrix_.n, kBias, form.is_static),
      activation_block_(matrix_.k) {
  if (form.is_static) return;
  activation_block_ = node.integer("activation_block");
  if (activation_block_ != matrix_.k && activation_block_ != matrix_.group_size) {
    node.refuse("activation_block=" + std::to_string(activation_block_) +
                " is neither K=" + std::to_string(matrix_.k) +
                " nor group_size=" + std::to_string(matrix_.group_size));
  }
}

MatMulCall MatMulNode::read(OrtKernelContext* context) const {
  const PackedInputs::Pointers packed = packed_.read(context);
  return {layer_.read(context), packed};
}

}  // namespace qc::ops
