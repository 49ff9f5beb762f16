#include <cstdint>

#include "cuda/matmul.h"
#include "ops/device_element.h"
#include "ops/device_scratch.h"
#include "ops/library.h"
#include "ops/matmul_node.h"

namespace qc::ops {
namespace {

// Launches only: nothing is allocated outside the provider's arena, and nothing is waited for.
class MatMulCudaKernel {
 public:
  MatMulCudaKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op), allocator_(api, info) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const MatMulCall call = node_.read(context);
    if (call.rows == 0) return;
    const cuda::Product product = product_of(call);
    if (const char* cause = cuda::refusal(product)) throw OpError(node_.label() + ": " + cause);
    void* stream = nullptr;
    check(abi::KernelContext_GetGPUComputeStream(api(), context, &stream));
    const DeviceScratch scratch(allocator_, context, stream, cuda::scratch_bytes(product));
    if (const char* error = cuda::run(product, scratch.data(), stream)) {
      throw std::runtime_error(node_.label() + ": CUDA: " + error);
    }
  }

 private:
  cuda::Product product_of(const MatMulCall& call) const {
    const MatrixAttributes& matrix = node_.matrix();
    cuda::Product product{};
    product.x = call.x;
    product.rows = call.rows;
    product.k = matrix.k;
    product.n = matrix.n;
    product.group_size = matrix.group_size;
    product.activation_block = node_.activation_block();
    product.codes = call.packed.codes;
    product.scales = call.packed.scales;
    product.zero_points = call.packed.zero_points;
    product.bias = call.bias;
    for (std::size_t i = 0; i < call.outputs.size(); ++i) {
      const OutputRange& range = call.outputs[i];
      product.outputs[i] = {range.data, range.column_begin, range.column_end};
    }
    product.element = element_of(node_.element_type());
    product.static_scale = call.static_scale;
    product.bits = node_.form().bits;
    product.one_zero_point = call.packed.one_zero_point;
    product.one_bias = call.one_bias;
    return product;
  }

  MatMulNode node_;
  DeviceAllocator allocator_;
};

}  // namespace

void add_matmul_cuda_ops(std::deque<Op>& ops, const char* provider) {
  add_matmul_family<MatMulCudaKernel>(ops, [provider](Op& op) {
    op.provider = provider;
    // The static scale of X is checked and passed by value, so it stays in the host's memory.
    op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t i) {
      return i == MatMulNode::kXScale ? abi::kMemoryCpuInput : abi::kMemoryDefault;
    };
  });
}

}  // namespace qc::ops
