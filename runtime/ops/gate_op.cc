#include "ops/gate_op.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/gate/gate.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

constexpr const char* kName = "SwiGLU";
constexpr std::int64_t kValuesPerTask = 1 << 14;

const kernels::KernelTable* g_kernels = nullptr;

class GateKernel {
 public:
  GateKernel(const OrtApi* api, const OrtKernelInfo* info, const Op&)
      : api_(api), label_(Node(api, info, kName).label()) {}

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
    std::int64_t count = 1;
    for (const std::int64_t dim : shape) count *= dim;
    const auto* gates = static_cast<const float*>(data_of(api_, gate));
    const auto* ups = static_cast<const float*>(data_of(api_, up));
    auto* y = static_cast<float*>(data_of(api_, output_of(api_, context, 0, shape)));
    auto task = [&](std::size_t index) {
      const std::int64_t begin = static_cast<std::int64_t>(index) * kValuesPerTask;
      g_kernels->swiglu(gates + begin, ups + begin, std::min(kValuesPerTask, count - begin),
                        y + begin);
    };
    const std::int64_t tasks = (count + kValuesPerTask - 1) / kValuesPerTask;
    parallel_for(api_, context, static_cast<std::size_t>(tasks), task);
  }

 private:
  const OrtApi* api_;
  std::string label_;
};

}  // namespace

void add_gate_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels) {
  g_kernels = &kernels;
  Op& op = ops.emplace_back(make_op(kName, {abi::kFloat, abi::kFloat}, {abi::kFloat}, 1));
  op.InferOutputShapeFn = infer_same;
  set_kernel<GateKernel>(op);
}

}  // namespace qc::ops
