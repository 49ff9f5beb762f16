#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/dispatch/dispatch.h"
#include "ops/library.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

constexpr std::int64_t kValuesPerTask = 1 << 14;

// body(begin, count) over the values of a shape.
template <typename Body>
void each_part(const OrtApi* api, OrtKernelContext* context, const Shape& shape, Body&& body) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  auto task = [&](std::size_t index) {
    const std::int64_t begin = static_cast<std::int64_t>(index) * kValuesPerTask;
    body(begin, std::min(kValuesPerTask, count - begin));
  };
  const std::int64_t tasks = kernels::ceil_div(count, kValuesPerTask);
  parallel_for(api, context, static_cast<std::size_t>(tasks), task);
}

class SwiGluKernel {
 public:
  static constexpr const char* kName = "SwiGLU";

  SwiGluKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : api_(api), kernels_(*op.kernels), label_(Node(api, info, kName).label()) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const OrtValue* gate = input_of(api_, context, 0);
    const OrtValue* up = input_of(api_, context, 1);
    const Shape shape = info_of(api_, gate).shape;
    const Shape up_shape = info_of(api_, up).shape;
    if (shape != up_shape) {
      throw OpError(label_ + ": gate has shape " + to_string(shape) + " and up " +
                    to_string(up_shape) + ", expected the same of both");
    }
    const auto* gates = static_cast<const float*>(data_of(api_, gate));
    const auto* ups = static_cast<const float*>(data_of(api_, up));
    auto* y = static_cast<float*>(data_of(api_, output_of(api_, context, 0, shape)));
    each_part(api_, context, shape, [&](std::int64_t begin, std::int64_t count) {
      kernels_.swiglu(gates + begin, ups + begin, count, y + begin);
    });
  }

 private:
  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
  std::string label_;
};

template <bool kByTanh>
class GeluKernel {
 public:
  static constexpr const char* kName = kByTanh ? "GeluTanh" : "Gelu";

  GeluKernel(const OrtApi* api, const OrtKernelInfo*, const Op& op)
      : api_(api), kernels_(*op.kernels) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const OrtValue* value = input_of(api_, context, 0);
    const Shape shape = info_of(api_, value).shape;
    const auto* x = static_cast<const float*>(data_of(api_, value));
    auto* y = static_cast<float*>(data_of(api_, output_of(api_, context, 0, shape)));
    each_part(api_, context, shape, [&](std::int64_t begin, std::int64_t count) {
      kernels_.gelu(x + begin, count, kByTanh, y + begin);
    });
  }

 private:
  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
};

template <typename Kernel>
void add(std::deque<Op>& ops, std::vector<int> inputs) {
  Op& op = ops.emplace_back(make_op(Kernel::kName, std::move(inputs), {abi::kFloat}, 1));
  op.InferOutputShapeFn = infer_same;
  set_kernel<Kernel>(op);
}

}  // namespace

void add_activation_ops(std::deque<Op>& ops) {
  add<SwiGluKernel>(ops, {abi::kFloat, abi::kFloat});
  add<GeluKernel<false>>(ops, {abi::kFloat});
  add<GeluKernel<true>>(ops, {abi::kFloat});
}

}  // namespace qc::ops
