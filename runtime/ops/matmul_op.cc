#include "ops/matmul_op.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "ops/matmul_compute.h"
#include "ops/packed_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

enum Input : std::size_t { kX, kPacked, kBias = 4, kXScale = 5 };
constexpr std::size_t kOutputs = 3;

struct Variant {
  const char* name;
  int bits;
  bool is_static;
};
constexpr Variant kVariants[] = {
    {"MatMulW4A8", 4, false},
    {"MatMulW4A8Static", 4, true},
    {"MatMulW8A8", 8, false},
    {"MatMulW8A8Static", 8, true},
};

const kernels::KernelTable* g_kernels = nullptr;

template <int kVariant>
class MatMulKernel {
 public:
  MatMulKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : MatMulKernel(api, Node(api, info, kForm.name), op.input_types[kX]) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const PackedInputs::Pointers packed = packed_.read(context);
    const OrtValue* x = input_of(api_, context, kX);
    Shape shape = info_of(api_, x).shape;
    if (shape.empty() || shape.back() != matrix_.k) {
      throw OpError(label_ + ": X has shape " + to_string(shape) +
                    ", its last dimension must be K=" + std::to_string(matrix_.k));
    }
    MatMulJob job{};
    job.rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) job.rows *= shape[i];
    job.outputs = make_outputs(context, std::move(shape));

    const OrtValue* bias = input_of(api_, context, kBias);
    if (!bias_checked_) check_bias(info_of(api_, bias).shape);
    std::vector<float> spread_bias;
    const auto* bias_data = static_cast<const float*>(data_of(api_, bias));
    if (bias_checked_ ? one_bias_ : info_of(api_, bias).shape == Shape{1}) {
      // One value for all columns: 0 by convention, else spread here.
      const float value = float_at(bias);
      if (value != 0.0f) spread_bias.assign(static_cast<std::size_t>(matrix_.n), value);
      bias_data = spread_bias.empty() ? nullptr : spread_bias.data();
    }
    if (kForm.is_static) {
      const OrtValue* scale = input_of(api_, context, kXScale);
      if (!x_scale_checked_) check_x_scale(scale);
      job.static_scale = float_at(scale);
    }
    if (job.rows == 0) return;

    job.kernels = g_kernels;
    job.bits = kForm.bits;
    job.element_type = element_type_;
    job.x = data_of(api_, x);
    job.activation_block = activation_block_;
    job.zero_point = packed.zero_point;
    job.weights = {packed.codes, packed.scales, packed.zero_points, bias_data,
                   matrix_.k,    matrix_.n,     matrix_.group_size};
    run(api_, context, job);
  }

 private:
  static constexpr Variant kForm = kVariants[kVariant];

  MatMulKernel(const OrtApi* api, const Node& node, int element_type)
      : api_(api),
        label_(node.label()),
        element_type_(element_type),
        matrix_(MatrixAttributes::read(node)),
        packed_(api, node, matrix_, kForm.bits, kPacked) {
    read_splits(node);
    activation_block_ = matrix_.k;
    if (!kForm.is_static) {
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
    if (kForm.is_static) {
      if (const OrtValue* scale = node.constant(kXScale)) {
        check_x_scale(scale);
        x_scale_checked_ = true;
      }
    }
  }

  void read_splits(const Node& node) {
    splits_ = node.integers("splits");
    if (splits_.size() != kOutputs) {
      node.refuse("splits has " + std::to_string(splits_.size()) + " values, expected 3");
    }
    std::int64_t left = matrix_.n;
    for (const std::int64_t split : splits_) {
      if (split < 0 || split > left) break;
      left -= split;
    }
    if (left != 0 || splits_[0] < 1) {
      node.refuse("splits=" + to_string(splits_) + " must be three sizes that sum to N=" +
                  std::to_string(matrix_.n) + ", the first above 0");
    }
  }

  void check_bias(const Shape& shape) const {
    if (shape == Shape{matrix_.n} || shape == Shape{1}) return;
    throw OpError(label_ + ": bias has shape " + to_string(shape) + ", expected [" +
                  std::to_string(matrix_.n) + "] or [1]");
  }

  void check_x_scale(const OrtValue* value) const {
    const Shape shape = info_of(api_, value).shape;
    if (!shape.empty() && shape != Shape{1}) {
      throw OpError(label_ + ": x_scale has shape " + to_string(shape) + ", expected [] or [1]");
    }
    const float scale = float_at(value);
    if (!std::isfinite(scale) || scale <= 0.0f) {
      throw OpError(label_ + ": x_scale is " + std::to_string(scale) +
                    ", it must be finite and above 0");
    }
  }

  // The only element of a tensor, which may lie unaligned in a mapped file.
  float float_at(const OrtValue* tensor) const {
    float value;
    std::memcpy(&value, data_of(api_, tensor), sizeof value);
    return value;
  }

  // `shape` is X's.
  std::array<OutputRange, kOutputs> make_outputs(OrtKernelContext* context, Shape shape) const {
    std::array<OutputRange, kOutputs> outputs{};
    std::int64_t column = 0;
    for (std::size_t i = 0; i < kOutputs; ++i) {
      outputs[i] = {column, column + splits_[i], nullptr};
      column += splits_[i];
      shape.back() = splits_[i];
      OrtValue* value = output_of(api_, context, i, shape);
      if (value != nullptr) outputs[i].data = data_of(api_, value);
    }
    return outputs;
  }

  const OrtApi* api_;
  std::string label_;
  int element_type_;
  MatrixAttributes matrix_;
  PackedInputs packed_;
  std::int64_t activation_block_ = 0;
  std::vector<std::int64_t> splits_;
  bool bias_checked_ = false;  // constant, checked at creation
  bool one_bias_ = false;
  bool x_scale_checked_ = false;
};

template <int kVariant>
void add_variant(std::deque<Op>& ops) {
  for (const int type : {abi::kFloat, abi::kFloat16, abi::kBfloat16}) {
    std::vector<int> inputs{type, abi::kUint8, abi::kFloat16, abi::kUint8, abi::kFloat};
    if (kVariants[kVariant].is_static) inputs.push_back(abi::kFloat);
    Op& op = ops.emplace_back(
        make_op(kVariants[kVariant].name, std::move(inputs), {type, type, type}, 1));
    op.InferOutputShapeFn = infer_matmul;
    set_kernel<MatMulKernel<kVariant>>(op);
  }
}

}  // namespace

void add_matmul_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels) {
  g_kernels = &kernels;
  add_variant<0>(ops);
  add_variant<1>(ops);
  add_variant<2>(ops);
  add_variant<3>(ops);
}

}  // namespace qc::ops
