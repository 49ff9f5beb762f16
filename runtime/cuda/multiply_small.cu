// The product for few tokens, where reading the weights is all that takes time.
//
// A block takes a pair of panels (32 columns) and all tokens; its eight warps share out the groups
// of k and add their sums in shared memory in the order of k. So narrow matrices fill the GPU
// without partial sums in global memory, and no other block is waited for. Each lane keeps several
// of its weight loads in flight in registers: no two warps want the same weights, so shared memory
// would only add a stop on the way.
#include "cuda/multiply.h"

namespace qc::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kLoadsAhead = 8;  // 16-byte weight loads in flight

template <int kBits>
__device__ inline WeightLoads<kBits> load_weights(const MultiplyJob& job, const uint4* panel,
                                                  int lane_block, std::int32_t step,
                                                  std::int32_t end) {
  constexpr int kCount = WeightLoads<kBits>::kCount;
  constexpr int kBlocks = 4 * kCount;  // in a step
  WeightLoads<kBits> w;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const std::int64_t block = std::int64_t{step} * kBlocks + lane_block + i;
    const bool present = panel != nullptr && step < end && block < job.blocks;
    w.quads[i] = present ? load_once(panel + 4 * block) : make_uint4(0, 0, 0, 0);
  }
  return w;
}

template <int kTiles>
struct CodeLoads {
  uint2 tiles[kTiles];
};

// `from`: the lane's codes in step 0. A step beyond the last reads that one again.
template <int kTiles>
__device__ inline CodeLoads<kTiles> load_codes(const MultiplyJob& job, const std::int8_t* from,
                                               std::int32_t step) {
  const std::int32_t known = step < job.steps ? step : job.steps - 1;
  const std::int8_t* codes = from + known * job.x.padded * kStep;
  CodeLoads<kTiles> x;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    x.tiles[i] = load_result(reinterpret_cast<const uint2*>(codes + 8 * kStep * i));
  }
  return x;
}

template <int kBits, int kTiles>
__global__ void __launch_bounds__(kWarps* kWarp) multiply_small_kernel(MultiplyJob job) {
  constexpr int kTokens = 8 * kTiles;
  constexpr int kRow = kPairColumns + 4;  // a stride that keeps the lanes on different banks
  constexpr int kWeightsAhead = kLoadsAhead / WeightLoads<kBits>::kCount;
  constexpr int kCodesAhead = kTiles == 1 ? 4 : 2;
  static_assert(kWeightsAhead % kCodesAhead == 0, "both rings turn together");
  alignas(16) __shared__ float shares[kWarps][kTokens][kRow];

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const std::int64_t pair = blockIdx.x;
  const std::int64_t panel = 2 * pair + g / 4;
  const int chunk = g % 4;
  const auto* weights =
      panel < job.panels
          ? reinterpret_cast<const uint4*>(job.codes + panel * job.blocks * kBlockBytes) + chunk
          : nullptr;
  const int lane_block = t * WeightLoads<kBits>::kCount;
  const std::int8_t* codes = job.x.codes + g * kStep + 8 * t;

  const std::int32_t first_group =
      static_cast<std::int32_t>(std::int64_t{job.groups} * warp / kWarps);
  const std::int32_t end_group =
      static_cast<std::int32_t>(std::int64_t{job.groups} * (warp + 1) / kWarps);
  const std::int32_t begin = first_group * job.steps_per_group;
  std::int32_t end = end_group * job.steps_per_group;
  if (end > job.steps) end = job.steps;

  // What the kernel before this one has no part in is fetched before that one is done.
  WeightLoads<kBits> w[kWeightsAhead];
#pragma unroll
  for (int i = 0; i < kWeightsAhead; ++i) {
    w[i] = load_weights<kBits>(job, weights, lane_block, begin + i, end);
  }
  GroupScales scales{};
  if (begin < end) scales = load_scales(job, panel, chunk, first_group);
  wait_for_previous_kernel();

  Sums<kTiles> sums;
  if (begin < end) {
    CodeLoads<kTiles> x[kCodesAhead];
#pragma unroll
    for (int i = 0; i < kCodesAhead; ++i) x[i] = load_codes<kTiles>(job, codes, begin + i);
    GroupTokens<kTiles> tokens = load_tokens<kTiles>(job, 2 * t, first_group);
    std::int32_t group = first_group;
    std::int32_t left = job.steps_per_group;  // steps of this group

    for (std::int32_t base = begin; base < end; base += kWeightsAhead) {
#pragma unroll
      for (int i = 0; i < kWeightsAhead; ++i) {
        const std::int32_t step = base + i;
        if (step >= end) break;
        std::uint32_t a[2][4];
        unpack<kBits>(w[i], a);
        const CodeLoads<kTiles> b = x[i % kCodesAhead];
        w[i] = load_weights<kBits>(job, weights, lane_block, step + kWeightsAhead, end);
        x[i % kCodesAhead] = load_codes<kTiles>(job, codes, step + kCodesAhead);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          mma_u8_s8(sums.dots[0][tile], a[0], b.tiles[tile]);
          mma_u8_s8(sums.dots[1][tile], a[1], b.tiles[tile]);
        }
        if (--left == 0 || step + 1 == end) {
          add_group<kTiles>(sums, scales, tokens);
          left = job.steps_per_group;
          if (++group < end_group) {
            scales = load_scales(job, panel, chunk, group);
            tokens = load_tokens<kTiles>(job, 2 * t, group);
          }
        }
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const float(&f)[4] = sums.floats[0][tile];
      const float(&h)[4] = sums.floats[1][tile];
      store(reinterpret_cast<float4*>(&shares[warp][8 * tile + 2 * t + odd][4 * g]),
            make_float4(f[odd], f[odd + 2], h[odd], h[odd + 2]));
    }
  }
  __syncthreads();
  const std::int64_t column = pair * kPairColumns + lane;
  if (column >= job.n) return;
  const float bias = bias_of(job, column);
  for (int token = warp; token < kTokens && token < job.rows; token += kWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += shares[i][token][lane];
    write(job, token, column, sum * token_scale(job, token) + bias);
  }
}

template <int kBits>
void start_small(const MultiplyJob& job, int tiles, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(job.panels, 2)));
  auto* kernel = multiply_small_kernel<kBits, 1>;
  if (tiles == 2) kernel = multiply_small_kernel<kBits, 2>;
  if (tiles > 2) kernel = multiply_small_kernel<kBits, 4>;
  launch(kernel, grid, kWarps * kWarp, stream, job.overlap != 0, job);
}

}  // namespace

void multiply_small(const MultiplyJob& job, int bits, int tiles, void* stream) {
  kernels::with_width(bits,
                      [&](auto codes) { start_small<decltype(codes)::kBits>(job, tiles, stream); });
}

}  // namespace qc::cuda
