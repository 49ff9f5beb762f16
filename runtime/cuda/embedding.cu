// A block of threads looks up one id; neighbouring threads write neighbouring values.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/embedding.h"

namespace qc::cuda {
namespace {

constexpr int kEmbeddingThreads = 128;
constexpr std::int64_t kMostBlocks = 1 << 20;

// The int8 weight of value k in a column.
template <typename P>
__device__ inline int weight_at(const EmbeddingLookUp& job, std::int64_t column, std::int64_t k) {
  const std::int64_t panel = column / kPanel;
  const int lane = static_cast<int>(column % kPanel);
  const std::int64_t strips = ceil_div(job.k, kStrip);
  const std::uint8_t* strip = job.codes + (panel * strips + k / kStrip) * P::kStripBytes;
  const int code = P::at(strip, static_cast<int>(k % kStrip), lane);
  if constexpr (!P::kGrouped) return code;
  const std::int64_t group = panel * ceil_div(job.k, job.group_size) + k / job.group_size;
  const int byte = load(job.groups + group * kPanel + lane);
  const int steps = P::number(code, job.levels) - P::zero_point(byte, job.levels);
  return static_cast<std::int8_t>(steps * P::multiple(byte));
}

template <typename P>
__global__ void __launch_bounds__(kEmbeddingThreads) embedding_kernel(EmbeddingLookUp job) {
  for (std::int64_t row = blockIdx.x; row < job.count; row += gridDim.x) {
    std::int64_t id = job.wide_ids != 0 ? load(static_cast<const std::int64_t*>(job.ids) + row)
                                        : load(static_cast<const std::int32_t*>(job.ids) + row);
    if (id < 0) id += job.n;
    const bool known = id >= 0 && id < job.n;
    const std::int64_t column = known ? id : 0;
    const float scale = known ? load(job.scales + column) : __uint_as_float(0x7fc00000);
    for (std::int64_t k = threadIdx.x; k < job.k; k += kEmbeddingThreads) {
      const float weight = __int2float_rn(weight_at<P>(job, column, k));
      store(job.out + row * job.k + k, __fmul_rn(weight, scale));
    }
  }
}

}  // namespace

const char* embedding(const EmbeddingLookUp& job, void* stream) {
  if (job.count == 0) return nullptr;
  if (!aligned(job.ids, job.wide_ids != 0 ? 8 : 4)) return "ids is not aligned to its elements";
  if (!aligned(job.scales, 4)) return "scales is not aligned to its elements";
  if (!aligned(job.out, 4)) return "the output is not aligned to its elements";
  const dim3 grid(static_cast<unsigned>(std::min(job.count, kMostBlocks)));
  kernels::with_planes(job.form, [&](auto planes) {
    launch(embedding_kernel<decltype(planes)>, grid, kEmbeddingThreads, stream, job);
  });
  return last_error();
}

}  // namespace qc::cuda
