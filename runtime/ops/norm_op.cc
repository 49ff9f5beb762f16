#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/dispatch/dispatch.h"
#include "ops/library.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

enum Input : std::size_t { kX, kSkip, kWeight, kBias };

constexpr std::int64_t kValuesPerTask = 1 << 14;

// kCenters: layer norm, else RMS norm.
template <bool kCenters>
class NormKernel {
 public:
  static constexpr const char* kName = kCenters ? "AddLayerNormalization" : "AddRMSNormalization";

  NormKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : NormKernel(api, Node(api, info, kName), op) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const OrtValue* x = input_of(api_, context, kX);
    const OrtValue* skip = input_of(api_, context, kSkip);
    const Shape shape = info_of(api_, x).shape;
    const Shape skip_shape = info_of(api_, skip).shape;
    if (shape.empty() || shape != skip_shape) {
      throw OpError(label_ + ": X has shape " + to_string(shape) + " and skip " +
                    to_string(skip_shape) + ", expected the same of both");
    }
    const std::int64_t n = shape.back();
    const float* weight = vector(context, kWeight, "weight", n);
    const float* bias = kCenters ? vector(context, kBias, "bias", n) : nullptr;
    std::int64_t rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    float* y = output(context, 0, shape);
    float* sum = output(context, 1, shape);
    if (sum == nullptr) sum = y;
    if (rows == 0 || n == 0) return;

    const auto* values = static_cast<const float*>(data_of(api_, x));
    const auto* others = static_cast<const float*>(data_of(api_, skip));
    const std::int64_t per_task = std::max<std::int64_t>(1, kValuesPerTask / n);
    auto task = [&](std::size_t index) {
      const std::int64_t begin = static_cast<std::int64_t>(index) * per_task;
      const std::int64_t end = std::min(rows, begin + per_task);
      for (std::int64_t at = begin * n; at < end * n; at += n) {
        kernels_.add_norm({values + at, others + at, weight, bias, n, epsilon_, sum + at, y + at});
      }
    };
    parallel_for(api_, context, static_cast<std::size_t>(kernels::ceil_div(rows, per_task)), task);
  }

 private:
  NormKernel(const OrtApi* api, const Node& node, const Op& op)
      : api_(api), kernels_(*op.kernels), label_(node.label()), epsilon_(node.real("epsilon")) {
    if (!std::isfinite(epsilon_) || epsilon_ < 0.0f) {
      node.refuse("epsilon=" + std::to_string(epsilon_) + " is not a number from 0 on");
    }
  }

  const float* vector(const OrtKernelContext* context, std::size_t index, const char* name,
                      std::int64_t n) const {
    const OrtValue* value = input_of(api_, context, index);
    const Shape shape = info_of(api_, value).shape;
    if (shape != Shape{n}) {
      throw OpError(label_ + ": " + name + " has shape " + to_string(shape) + ", expected [" +
                    std::to_string(n) + "]");
    }
    return static_cast<const float*>(data_of(api_, value));
  }

  // Null where the node leaves the output out.
  float* output(OrtKernelContext* context, std::size_t index, const Shape& shape) const {
    OrtValue* value = output_of(api_, context, index, shape);
    return value != nullptr ? static_cast<float*>(data_of(api_, value)) : nullptr;
  }

  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
  std::string label_;
  float epsilon_;
};

template <bool kCenters>
void add(std::deque<Op>& ops) {
  std::vector<int> inputs(kCenters ? 4 : 3, abi::kFloat);
  Op& op = ops.emplace_back(
      make_op(NormKernel<kCenters>::kName, std::move(inputs), {abi::kFloat, abi::kFloat}, 1));
  op.InferOutputShapeFn = infer_norm;
  set_kernel<NormKernel<kCenters>>(op);
}

}  // namespace

void add_norm_ops(std::deque<Op>& ops) {
  add<false>(ops);
  add<true>(ops);
}

}  // namespace qc::ops
