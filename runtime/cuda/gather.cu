// A block of threads looks up one id; a thread takes the bytes of one block of packed weights that
// belong to the column.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/gather.h"

namespace qc::cuda {
namespace {

constexpr int kGatherThreads = 128;
constexpr std::int64_t kMaxBlocks = 1 << 20;

template <typename Codes>
__global__ void gather_kernel(LookUp job) {
  constexpr int kDepth = Codes::kDepth;
  const std::int64_t blocks = ceil_div(job.k, kDepth);
  const std::int64_t groups = ceil_div(job.k, job.group_size);
  for (std::int64_t row = blockIdx.x; row < job.count; row += gridDim.x) {
    std::int64_t id = job.wide_ids != 0 ? load(static_cast<const std::int64_t*>(job.ids) + row)
                                        : load(static_cast<const std::int32_t*>(job.ids) + row);
    if (id < 0) id += job.n;
    const bool known = id >= 0 && id < job.n;
    const std::int64_t panel = known ? id / kPanel : 0;
    const std::int64_t lane = known ? id % kPanel : 0;
    const auto* words = reinterpret_cast<const std::uint32_t*>(job.codes) + lane;
    for (std::int64_t block = threadIdx.x; block < blocks; block += kGatherThreads) {
      const std::uint32_t word = load(words + (panel * blocks + block) * kPanel);
      const std::int64_t first = block * kDepth;  // no block is in two groups
      const std::int64_t at = (panel * groups + first / job.group_size) * kPanel + lane;
      const float scale =
          known ? float_of_half(load(job.scales + at)) : __uint_as_float(0x7fc00000);
      const int zero = load(job.zero_points + (job.one_zero_point != 0 ? 0 : at));
      for (int i = 0; i < kDepth && first + i < job.k; ++i) {
        const int code = static_cast<int>(word >> Codes::shift(i) & Codes::kLargest);
        store(job.out + row * job.k + first + i, static_cast<float>(code - zero) * scale);
      }
    }
  }
}

}  // namespace

const char* gather(const LookUp& job, void* stream) {
  if (job.count == 0) return nullptr;
  if (!aligned(job.ids, job.wide_ids != 0 ? 8 : 4)) return "ids is not aligned to its elements";
  if (!aligned(job.codes, 4)) return "W is not aligned to 4 bytes on the device";
  if (!aligned(job.scales, 2)) return "scales is not aligned to its elements";
  if (!aligned(job.out, 4)) return "the output is not aligned to its elements";
  const dim3 grid(static_cast<unsigned>(std::min(job.count, kMaxBlocks)));
  kernels::with_width(job.bits, [&](auto codes) {
    launch(gather_kernel<decltype(codes)>, grid, kGatherThreads, stream, false, job);
  });
  return last_error();
}

}  // namespace qc::cuda
