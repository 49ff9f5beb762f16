#include "ops/gather_cuda_op.h"

#include <cstdint>

#include "cuda/gather.h"
#include "ops/gather_node.h"

namespace qc::ops {
namespace {

const char* g_provider = nullptr;

// One launch. Ids stay on the device, so one that is out of range can't be refused: its row is NaN.
template <int kBits>
class GatherCudaKernel {
 public:
  GatherCudaKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op.name, kBits) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const GatherCall call = node_.read(context);
    if (call.count == 0) return;
    cuda::LookUp job{};
    job.ids = call.ids;
    job.count = call.count;
    job.k = node_.matrix().k;
    job.n = node_.matrix().n;
    job.group_size = node_.matrix().group_size;
    job.codes = call.packed.codes;
    job.scales = call.packed.scales;
    job.zero_points = call.packed.zero_points;
    job.out = call.out;
    job.wide_ids = call.wide_ids;
    job.bits = kBits;
    job.one_zero_point = call.packed.one_zero_point;
    void* stream = nullptr;
    check(abi::KernelContext_GetGPUComputeStream(api(), context, &stream));
    if (const char* error = cuda::gather(job, stream)) {
      throw std::runtime_error(node_.label() + ": CUDA: " + error);
    }
  }

 private:
  GatherNode node_;
};

}  // namespace

void add_gather_cuda_ops(std::deque<Op>& ops, const char* provider) {
  g_provider = provider;
  add_gather_family<GatherCudaKernel>(ops, [](Op& op) {
    op.GetExecutionProviderType = [](const OrtCustomOp*) { return g_provider; };
  });
}

}  // namespace qc::ops
