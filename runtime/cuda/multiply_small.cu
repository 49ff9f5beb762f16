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

// Where a lane finds what it multiplies.
struct Place {
  int lane, warp;
  int g, t, chunk;  // as multiply.h names them
  std::int64_t pair, panel;
  const uint4* weights;      // its first ones; null beyond the last panel
  const std::int8_t* codes;  // of its first step
};

__device__ inline Place place_of(const MultiplyJob& job) {
  Place at;
  at.lane = static_cast<int>(threadIdx.x) % kWarp;
  at.warp = static_cast<int>(threadIdx.x) / kWarp;
  at.g = at.lane / 4;
  at.t = at.lane % 4;
  at.chunk = at.g % 4;
  at.pair = blockIdx.x;
  at.panel = 2 * at.pair + at.g / 4;
  at.weights =
      at.panel < job.panels
          ? reinterpret_cast<const uint4*>(job.codes + at.panel * job.blocks * kBlockBytes) +
                at.chunk
          : nullptr;
  at.codes = job.x.codes + at.g * kStep + 8 * at.t;
  return at;
}

// Multiplies a share of the groups. `w` and `scales` are those that it begins with.
template <int kBits, int kTiles, int kWeightsAhead>
__device__ inline void multiply_share(const MultiplyJob& job, const Place& at, const Share& share,
                                      WeightLoads<kBits> (&w)[kWeightsAhead], GroupScales scales,
                                      Sums<kTiles>& sums) {
  constexpr int kCodesAhead = kTiles == 1 ? 4 : 2;
  static_assert(kWeightsAhead % kCodesAhead == 0, "both rings turn together");
  const int lane_block = at.t * WeightLoads<kBits>::kCount;
  CodeLoads<kTiles> x[kCodesAhead];
#pragma unroll
  for (int i = 0; i < kCodesAhead; ++i) x[i] = load_codes<kTiles>(job, at.codes, share.begin + i);
  GroupTokens<kTiles> tokens = load_tokens<kTiles>(job, 2 * at.t, share.group);
  std::int32_t group = share.group;
  std::int32_t left = job.steps_per_group;  // steps of this group

  for (std::int32_t base = share.begin; base < share.end; base += kWeightsAhead) {
#pragma unroll
    for (int i = 0; i < kWeightsAhead; ++i) {
      const std::int32_t step = base + i;
      if (step >= share.end) break;
      std::uint32_t a[2][4];
      unpack<kBits>(w[i], a);
      const CodeLoads<kTiles> b = x[i % kCodesAhead];
      w[i] = load_weights<kBits>(job, at.weights, lane_block, step + kWeightsAhead, share.end);
      x[i % kCodesAhead] = load_codes<kTiles>(job, at.codes, step + kCodesAhead);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        mma_u8_s8(sums.dots[0][tile], a[0], b.tiles[tile]);
        mma_u8_s8(sums.dots[1][tile], a[1], b.tiles[tile]);
      }
      if (--left == 0 || step + 1 == share.end) {
        add_group<kTiles>(sums, scales, tokens);
        left = job.steps_per_group;
        if (++group < share.end_group) {
          scales = load_scales(job, at.panel, at.chunk, group);
          tokens = load_tokens<kTiles>(job, 2 * at.t, group);
        }
      }
    }
  }
}

// A stride of the shares in shared memory that keeps the lanes on different banks.
constexpr int kShareRow = kPairColumns + 4;

// Puts a warp's sums where the others see them.
template <int kTiles>
__device__ inline void show(const Place& at, const Sums<kTiles>& sums,
                            float (&share)[8 * kTiles][kShareRow]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const float(&f)[4] = sums.floats[0][tile];
      const float(&h)[4] = sums.floats[1][tile];
      store(reinterpret_cast<float4*>(&share[8 * tile + 2 * at.t + odd][4 * at.g]),
            make_float4(f[odd], f[odd + 2], h[odd], h[odd + 2]));
    }
  }
}

// Adds the shares of all warps, in order, and writes the result.
template <int kTokens>
__device__ inline void write_sums(const MultiplyJob& job, const Place& at,
                                  const float (&shares)[kWarps][kTokens][kShareRow]) {
  const std::int64_t column = at.pair * kPairColumns + at.lane;
  if (column >= job.n) return;
  const float bias = bias_of(job, column);
  for (int token = at.warp; token < kTokens && token < job.rows; token += kWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += shares[i][token][at.lane];
    write(job, token, column, sum * token_scale(job, token) + bias);
  }
}

template <int kBits, int kTiles>
__global__ void __launch_bounds__(kWarps* kWarp) multiply_small_kernel(MultiplyJob job) {
  constexpr int kWeightsAhead = kLoadsAhead / WeightLoads<kBits>::kCount;
  alignas(16) __shared__ float shares[kWarps][8 * kTiles][kShareRow];
  const Place at = place_of(job);
  const Share share = share_of(job, at.warp, kWarps);

  // What the kernel before this one has no part in is fetched before that one is done.
  WeightLoads<kBits> w[kWeightsAhead];
#pragma unroll
  for (int i = 0; i < kWeightsAhead; ++i) {
    w[i] = load_weights<kBits>(job, at.weights, at.t * WeightLoads<kBits>::kCount, share.begin + i,
                               share.end);
  }
  GroupScales scales{};
  if (share.begin < share.end) scales = load_scales(job, at.panel, at.chunk, share.group);
  wait_for_previous_kernel();

  Sums<kTiles> sums;
  if (share.begin < share.end) {
    multiply_share<kBits, kTiles>(job, at, share, w, scales, sums);
  }
  show<kTiles>(at, sums, shares[at.warp]);
  __syncthreads();
  write_sums<8 * kTiles>(job, at, shares);
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
