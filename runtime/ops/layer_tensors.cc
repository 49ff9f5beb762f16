#include "ops/layer_tensors.h"

#include <cmath>
#include <cstring>
#include <utility>

namespace qc::ops {
namespace {

constexpr std::size_t kX = 0;

// A value that may lie unaligned in a mapped file.
float value_at(const void* data) {
  float value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

}  // namespace

LayerTensors::LayerTensors(const OrtApi* api, const Node& node, std::int64_t k, std::int64_t n,
                           std::size_t bias, bool is_static)
    : api_(api), label_(node.label()), k_(k), n_(n), bias_(bias), is_static_(is_static) {
  read_splits(node);
  if (const OrtValue* value = node.constant(bias)) {
    const Shape shape = info_of(api, value).shape;
    check_bias(shape);
    bias_checked_ = true;
    one_bias_ = shape == Shape{1};
  }
  if (is_static) {
    if (const OrtValue* scale = node.constant(bias + 1)) {
      check_x_scale(scale);
      x_scale_checked_ = true;
    }
  }
}

LayerCall LayerTensors::read(OrtKernelContext* context) const {
  LayerCall call{};
  const OrtValue* x = input_of(api_, context, kX);
  Shape shape = info_of(api_, x).shape;
  if (shape.empty() || shape.back() != k_) {
    throw OpError(label_ + ": X has shape " + to_string(shape) +
                  ", its last dimension must be K=" + std::to_string(k_));
  }
  call.x = data_of(api_, x);
  call.rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) call.rows *= shape[i];
  call.outputs = make_outputs(context, std::move(shape));

  const OrtValue* bias = input_of(api_, context, bias_);
  call.bias = static_cast<const float*>(data_of(api_, bias));
  call.one_bias = one_bias_;
  if (!bias_checked_) {
    const Shape bias_shape = info_of(api_, bias).shape;
    check_bias(bias_shape);
    call.one_bias = bias_shape == Shape{1};
  }
  if (is_static_) {
    const OrtValue* scale = input_of(api_, context, bias_ + 1);
    if (!x_scale_checked_) check_x_scale(scale);
    call.static_scale = value_at(data_of(api_, scale));
  }
  return call;
}

void LayerTensors::read_splits(const Node& node) {
  splits_ = node.integers("splits");
  if (splits_.size() != kLayerOutputs) {
    node.refuse("splits has " + std::to_string(splits_.size()) + " values, expected 3");
  }
  std::int64_t left = n_;
  bool fit = splits_[0] >= 1;
  for (const std::int64_t split : splits_) {
    fit = fit && split >= 0 && split <= left;
    if (fit) left -= split;
  }
  if (!fit || left != 0) {
    node.refuse("splits=" + to_string(splits_) +
                " must be three sizes that sum to N=" + std::to_string(n_) + ", the first above 0");
  }
}

void LayerTensors::check_bias(const Shape& shape) const {
  if (shape == Shape{n_} || shape == Shape{1}) return;
  throw OpError(label_ + ": bias has shape " + to_string(shape) + ", expected [" +
                std::to_string(n_) + "] or [1]");
}

void LayerTensors::check_x_scale(const OrtValue* value) const {
  const Shape shape = info_of(api_, value).shape;
  if (!shape.empty() && shape != Shape{1}) {
    throw OpError(label_ + ": x_scale has shape " + to_string(shape) + ", expected [] or [1]");
  }
  const float scale = value_at(data_of(api_, value));
  if (!std::isfinite(scale) || scale <= 0.0f) {
    throw OpError(label_ + ": x_scale is " + std::to_string(scale) +
                  ", it must be finite and above 0");
  }
}

// `shape` is X's.
std::array<OutputRange, kLayerOutputs> LayerTensors::make_outputs(OrtKernelContext* context,
                                                                  Shape shape) const {
  std::array<OutputRange, kLayerOutputs> outputs{};
  std::int64_t column = 0;
  for (std::size_t i = 0; i < kLayerOutputs; ++i) {
    outputs[i] = {column, column + splits_[i], nullptr};
    column += splits_[i];
    shape.back() = splits_[i];
    OrtValue* value = output_of(api_, context, i, shape);
    // An empty one is made, and nothing is written to it.
    if (value != nullptr && splits_[i] != 0) outputs[i].data = data_of(api_, value);
  }
  return outputs;
}

BiasValues::BiasValues(const LayerCall& call, std::int64_t n) : values_(call.bias) {
  if (!call.one_bias) return;
  const float value = value_at(call.bias);
  // Of the two zeros only 0.0 stands for none: to add -0.0 keeps a sign.
  if (value != 0.0f || std::signbit(value)) spread_.assign(static_cast<std::size_t>(n), value);
  values_ = spread_.empty() ? nullptr : spread_.data();
}

}  // namespace qc::ops
