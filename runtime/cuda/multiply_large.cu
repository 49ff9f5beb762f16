// The product for many tokens, with the tensor instructions of every GPU since Ampere.
#include "cuda/multiply_tiled.h"

namespace qc::cuda {
namespace {

constexpr int kSplitThreads = 256;

struct MmaUnit {
  __device__ static int place_of(int unit) { return unit; }
  __device__ static void publish_copies() {}

  template <int kTiles>
  __device__ static void multiply(Sums<kTiles>& sums, const std::uint32_t (&a)[2][4],
                                  const std::int8_t* codes, int lane) {
    codes += lane / 4 * kStep + lane % 4 * 8;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint2 b = *reinterpret_cast<const uint2*>(codes + 8 * tile * kStep);
      mma_u8_s8(sums.dots[0][tile], a[0], b);
      mma_u8_s8(sums.dots[1][tile], a[1], b);
    }
  }

  template <int kTiles, int kSteps>
  __device__ static void finish(Sums<kTiles>&, std::uint32_t (&)[kSteps][2][4]) {}
};

// Adds the sums of all splits, in order.
__global__ void __launch_bounds__(kSplitThreads) add_splits(MultiplyJob job, std::int64_t width) {
  const std::int64_t token = blockIdx.y;
  const std::int64_t column = std::int64_t{blockIdx.x} * kSplitThreads + threadIdx.x;
  if (column >= job.n) return;
  float sum = 0.0f;
  for (std::int64_t split = 0; split < job.splits; ++split) {
    sum += load_result(job.partials + (split * job.x.padded + token) * width + column);
  }
  write(job, token, column, sum * token_scale(job, token) + bias_of(job, column));
}

template <int kBits>
void start_large(const MultiplyJob& job, int tokens, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(job.panels, kTilePanels)),
                  static_cast<unsigned>(job.x.padded / tokens), static_cast<unsigned>(job.splits));
  auto* kernel = multiply_tiled<kBits, 64, MmaUnit>;
  if (tokens == 128) kernel = multiply_tiled<kBits, 128, MmaUnit>;
  launch(kernel, grid, kTileThreads, stream, job.overlap != 0, job);
}

}  // namespace

void add_split_sums(const MultiplyJob& job, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(job.n, kSplitThreads)),
                  static_cast<unsigned>(job.rows));
  launch(add_splits, grid, kSplitThreads, stream, false, job,
         ceil_div(job.n, kLargeColumns) * kLargeColumns);
}

void multiply_large(const MultiplyJob& job, int bits, int tokens, void* stream) {
  kernels::with_width(
      bits, [&](auto codes) { start_large<decltype(codes)::kBits>(job, tokens, stream); });
}

}  // namespace qc::cuda
