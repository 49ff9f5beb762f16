#include <cstdint>

#include "cuda/gather.h"
#include "ops/gather_node.h"
#include "ops/library.h"

namespace qc::ops {
namespace {

// One launch. Ids stay on the device, so one that is out of range can't be refused: its row is NaN.
class GatherCudaKernel {
 public:
  GatherCudaKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op) {}

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
    job.wide_ids = call.wide;
    job.bits = node_.bits();
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
  add_gather_family<GatherCudaKernel>(ops, [provider](Op& op) { op.provider = provider; });
}

}  // namespace qc::ops
