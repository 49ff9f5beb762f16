#include "cuda/embedding.h"
#include "ops/embedding_node.h"
#include "ops/library.h"

namespace qc::ops {
namespace {

// One launch. Ids stay on the device, so one that is out of range can't be refused: its row is NaN.
class EmbeddingCudaKernel {
 public:
  EmbeddingCudaKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : node_(api, info, op) {}

  const OrtApi* api() const { return node_.api(); }

  void compute(OrtKernelContext* context) const {
    const EmbeddingCall call = node_.read(context);
    if (call.count == 0) return;
    cuda::EmbeddingLookUp job{};
    job.ids = call.ids;
    job.count = call.count;
    job.k = node_.matrix().k;
    job.n = node_.matrix().n;
    job.group_size = node_.matrix().group_size;
    job.codes = call.weights.codes;
    job.groups = call.weights.groups;
    job.scales = call.weights.scales;
    job.out = call.out;
    job.wide_ids = call.wide_ids;
    job.form = node_.form();
    job.levels = node_.matrix().levels;
    void* stream = nullptr;
    check(abi::KernelContext_GetGPUComputeStream(api(), context, &stream));
    if (const char* error = cuda::embedding(job, stream)) {
      throw std::runtime_error(node_.label() + ": CUDA: " + error);
    }
  }

 private:
  EmbeddingNode node_;
};

}  // namespace

void add_embedding_cuda_ops(std::deque<Op>& ops, const char* provider) {
  add_embedding_family<EmbeddingCudaKernel>(ops, [provider](Op& op) { op.provider = provider; });
}

}  // namespace qc::ops
