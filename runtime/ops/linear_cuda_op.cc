#include "cuda/linear.h"
#include "ops/device_scratch.h"
#include "ops/library.h"
#include "ops/linear_node.h"

namespace qc::ops {
namespace {

cuda::Element element_of(int type) {
  return type == abi::kFloat     ? cuda::Element::kFloat32
         : type == abi::kFloat16 ? cuda::Element::kFloat16
                                 : cuda::Element::kBfloat16;
}

// Launches only: nothing is allocated outside the provider's arena, and nothing is waited for.
class LinearCudaKernel {
 public:
  LinearCudaKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op), allocator_(api, info) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const LinearCall call = node_.read(context);
    if (call.rows == 0) return;
    const cuda::LinearProduct product = product_of(call);
    if (const char* cause = cuda::refusal(product)) throw OpError(node_.label() + ": " + cause);
    void* stream = nullptr;
    check(abi::KernelContext_GetGPUComputeStream(api(), context, &stream));
    const DeviceScratch scratch(allocator_, context, stream, cuda::scratch_bytes(product));
    if (const char* error = cuda::run(product, scratch.data(), stream)) {
      throw std::runtime_error(node_.label() + ": CUDA: " + error);
    }
  }

 private:
  cuda::LinearProduct product_of(const LinearCall& call) const {
    const MatrixAttributes& matrix = node_.matrix();
    cuda::LinearProduct product{};
    product.x = call.x;
    product.rows = call.rows;
    product.k = matrix.k;
    product.n = matrix.n;
    product.group_size = matrix.group_size;
    product.codes = call.weights.codes;
    product.groups = call.weights.groups;
    product.scales = call.weights.scales;
    product.bias = call.bias;
    for (std::size_t i = 0; i < call.outputs.size(); ++i) {
      const OutputRange& range = call.outputs[i];
      product.outputs[i] = {range.data, range.column_begin, range.column_end};
    }
    product.element = element_of(node_.element_type());
    product.static_scale = call.static_scale;
    product.form = node_.form();
    product.levels = matrix.levels;
    product.one_bias = call.one_bias;
    return product;
  }

  LinearNode node_;
  DeviceAllocator allocator_;
};

}  // namespace

void add_linear_cuda_ops(std::deque<Op>& ops, const char* provider) {
  add_linear_family<LinearCudaKernel>(ops, [provider](Op& op, const LinearForm& form) {
    op.provider = provider;
    if (!form.is_static) return;
    // The static scale of X is checked and passed by value, so it stays in the host's memory.
    op.GetInputMemoryType = [](const OrtCustomOp* self, std::size_t i) {
      const bool last = i + 1 == static_cast<const Op*>(self)->input_types.size();
      return last ? abi::kMemoryCpuInput : abi::kMemoryDefault;
    };
  });
}

}  // namespace qc::ops
