#include "ops/matmul_node.h"

#include <cmath>
#include <cstring>

namespace qc::ops {
namespace {

constexpr std::size_t kOutputs = 3;

// The only element of a tensor, which may lie unaligned in a mapped file.
float float_at(const OrtApi* api, const OrtValue* tensor) {
  float value;
  std::memcpy(&value, data_of(api, tensor), sizeof value);
  return value;
}

}  // namespace

MatMulNode::MatMulNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
    : MatMulNode(api, Node(api, info, op.name), form_of(kMatMulForms, op), op.input_types[kX]) {}

MatMulNode::MatMulNode(const OrtApi* api, const Node& node, const MatMulForm& form,
                       int element_type)
    : api_(api),
      form_(form),
      label_(node.label()),
      element_type_(element_type),
      matrix_(MatrixAttributes::read(node)),
      packed_(api, node, matrix_, form.bits, kPacked) {
  read_splits(node);
  activation_block_ = matrix_.k;
  if (!form.is_static) {
    activation_block_ = node.integer("activation_block");
    if (activation_block_ != matrix_.k && activation_block_ != matrix_.group_size) {
      node.refuse("activation_block=" + std::to_string(activation_block_) +
                  " is neither K=" + std::to_string(matrix_.k) +
                  " nor group_size=" + std::to_string(matrix_.group_size));
    }
  }
  if (const OrtValue* bias = node.constant(kBias)) {
    const Shape shape = info_of(api, bias).shape;
    check_bias(shape);
    bias_checked_ = true;
    one_bias_ = shape == Shape{1};
  }
  if (form.is_static) {
    if (const OrtValue* scale = node.constant(kXScale)) {
      check_x_scale(scale);
      x_scale_checked_ = true;
    }
  }
}

MatMulCall MatMulNode::read(OrtKernelContext* context) const {
  MatMulCall call{};
  call.packed = packed_.read(context);
  const OrtValue* x = input_of(api_, context, kX);
  Shape shape = info_of(api_, x).shape;
  if (shape.empty() || shape.back() != matrix_.k) {
    throw OpError(label_ + ": X has shape " + to_string(shape) +
                  ", its last dimension must be K=" + std::to_string(matrix_.k));
  }
  call.x = data_of(api_, x);
  call.rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) call.rows *= shape[i];
  call.outputs = make_outputs(context, std::move(shape));

  const OrtValue* bias = input_of(api_, context, kBias);
  call.bias = static_cast<const float*>(data_of(api_, bias));
  call.one_bias = one_bias_;
  if (!bias_checked_) {
    const Shape bias_shape = info_of(api_, bias).shape;
    check_bias(bias_shape);
    call.one_bias = bias_shape == Shape{1};
  }
  if (form_.is_static) {
    const OrtValue* scale = input_of(api_, context, kXScale);
    if (!x_scale_checked_) check_x_scale(scale);
    call.static_scale = float_at(api_, scale);
  }
  return call;
}

void MatMulNode::read_splits(const Node& node) {
  splits_ = node.integers("splits");
  if (splits_.size() != kOutputs) {
    node.refuse("splits has " + std::to_string(splits_.size()) + " values, expected 3");
  }
  std::int64_t left = matrix_.n;
  bool fit = splits_[0] >= 1;
  for (const std::int64_t split : splits_) {
    fit = fit && split >= 0 && split <= left;
    if (fit) left -= split;
  }
  if (!fit || left != 0) {
    node.refuse("splits=" + to_string(splits_) + " must be three sizes that sum to N=" +
                std::to_string(matrix_.n) + ", the first above 0");
  }
}

void MatMulNode::check_bias(const Shape& shape) const {
  if (shape == Shape{matrix_.n} || shape == Shape{1}) return;
  throw OpError(label_ + ": bias has shape " + to_string(shape) + ", expected [" +
                std::to_string(matrix_.n) + "] or [1]");
}

void MatMulNode::check_x_scale(const OrtValue* value) const {
  const Shape shape = info_of(api_, value).shape;
  if (!shape.empty() && shape != Shape{1}) {
    throw OpError(label_ + ": x_scale has shape " + to_string(shape) + ", expected [] or [1]");
  }
  const float scale = float_at(api_, value);
  if (!std::isfinite(scale) || scale <= 0.0f) {
    throw OpError(label_ + ": x_scale is " + std::to_string(scale) +
                  ", it must be finite and above 0");
  }
}

// `shape` is X's.
std::array<OutputRange, kOutputs> MatMulNode::make_outputs(OrtKernelContext* context,
                                                           Shape shape) const {
  std::array<OutputRange, kOutputs> outputs{};
  std::int64_t column = 0;
  for (std::size_t i = 0; i < kOutputs; ++i) {
    outputs[i] = {column, column + splits_[i], nullptr};
    column += splits_[i];
    shape.back() = splits_[i];
    OrtValue* value = output_of(api_, context, i, shape);
    // An empty one is made, and nothing is written to it.
    if (value != nullptr && splits_[i] != 0) outputs[i].data = data_of(api_, value);
  }
  return outputs;
}

}  // namespace qc::ops
