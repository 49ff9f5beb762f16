#include "ops/gather_cuda_op.h"

#include <cstdint>

#include "cuda/gather.h"
#include "ops/gather_op.h"
#include "ops/packed_inputs.h"

namespace qc::ops {
namespace {

const char* g_provider = nullptr;

// One launch. Ids stay on the device, so one that is out of range can't be refused: its row is NaN.
template <int kBits>
class GatherCudaKernel {
 public:
  GatherCudaKernel(const OrtApi* api, const OrtKernelInfo* info, const Op&)
      : GatherCudaKernel(api, Node(api, info, kGatherName<kBits>)) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const PackedInputs::Pointers packed = packed_.read(context);
    const OrtValue* ids = input_of(api_, context, 0);
    const TensorInfo ids_info = info_of(api_, ids);
    Shape out_shape = ids_info.shape;
    out_shape.push_back(matrix_.k);
    OrtValue* output = output_of(api_, context, 0, out_shape);
    cuda::LookUp job{};
    job.count = 1;
    for (const std::int64_t dim : ids_info.shape) job.count *= dim;
    if (job.count == 0) return;
    job.ids = data_of(api_, ids);
    job.k = matrix_.k;
    job.n = matrix_.n;
    job.group_size = matrix_.group_size;
    job.codes = packed.codes;
    job.scales = packed.scales;
    job.zero_points = packed.zero_points;
    job.out = static_cast<float*>(data_of(api_, output));
    job.wide_ids = ids_info.type == abi::kInt64;
    job.bits = kBits;
    job.one_zero_point = packed.one_zero_point;
    void* stream = nullptr;
    check(abi::KernelContext_GetGPUComputeStream(api_, context, &stream));
    if (const char* error = cuda::gather(job, stream)) {
      throw std::runtime_error(label_ + ": CUDA: " + error);
    }
  }

 private:
  GatherCudaKernel(const OrtApi* api, const Node& node)
      : api_(api),
        label_(node.label()),
        matrix_(MatrixAttributes::read(node)),
        packed_(api, node, matrix_, kBits, 1) {}

  const OrtApi* api_;
  std::string label_;
  MatrixAttributes matrix_;
  PackedInputs packed_;
};

}  // namespace

void add_gather_cuda_ops(std::deque<Op>& ops, const char* provider) {
  g_provider = provider;
  add_gather_family<GatherCudaKernel>(ops, [](Op& op) {
    op.GetExecutionProviderType = [](const OrtCustomOp*) { return g_provider; };
  });
}

}  // namespace qc::ops
