// The tiled product behind multiply_large.cu and multiply_wgmma.cu, which differ in the
// instructions that multiply: a block takes 128 columns by 64 or 128 tokens.
//
// Weights and codes pass through shared memory in chunks of 64 k, copied several chunks ahead.
// Eight warps: four across the columns (a pair of panels each), two across the tokens, so that a
// weight is unpacked for half the tokens of the tile at once. Where tiles are too few to fill the
// GPU, blocks share out the groups of k; their sums are added by another kernel.
//
// `Unit` has the instructions:
//   place_of(i)             where the 16-byte unit i of a chunk's codes goes
//   publish_copies()        shows what has been copied to whatever reads it
//   multiply(sums, a, codes, lane)   sums.dots += weights times the codes of a warp's tokens
//   finish(sums, a)         waits for the sums; `a` and the codes are free again
#ifndef QC_CUDA_MULTIPLY_TILED_H_
#define QC_CUDA_MULTIPLY_TILED_H_

#include "cuda/multiply.h"

namespace qc::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kTilePanels = kLargeColumns / kPanel;
inline constexpr int kChunkSteps = 2;
inline constexpr int kSharedBytes = 48 << 10;  // what a block gets without asking

// Swaps 16-byte units so that the eight lanes that read at once meet eight banks of 16 bytes: they
// read two neighbouring units of each of four blocks (pairs of blocks for 8 bit).
__device__ inline int swizzled(int unit) { return unit ^ (unit >> 2 & 6); }

template <int kBits, int kTokens>
struct Chunk {
  static constexpr int kUnitsPerStep = 4 * kBits;  // of a panel, 16 bytes each
  static constexpr int kPanelUnits = kUnitsPerStep * kChunkSteps;
  static constexpr int kWeightUnits = kPanelUnits * kTilePanels;
  static constexpr int kCodeUnits = kTokens * kStep / 16 * kChunkSteps;
  static constexpr int kUnits = kWeightUnits + kCodeUnits;
  static constexpr int kStages = kSharedBytes / (16 * kUnits) < 4 ? 3 : 4;
  static_assert(kStages * kUnits * 16 <= kSharedBytes, "too much shared memory");
};

// Starts the copies of the chunk whose first step is `step`.
template <int kBits, int kTokens, typename Unit>
__device__ inline void copy_chunk(const MultiplyJob& job, uint4* to, std::int64_t first_panel,
                                  std::int64_t first_token, std::int32_t step) {
  using C = Chunk<kBits, kTokens>;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = thread; i < C::kWeightUnits; i += kTileThreads) {
    const int unit = i % C::kPanelUnits;
    const std::int64_t panel = first_panel + i / C::kPanelUnits;
    const std::int64_t block = std::int64_t{step} * (C::kUnitsPerStep / 4) + unit / 4;
    const bool present = panel < job.panels && block < job.blocks;
    const std::uint8_t* from =
        present ? job.codes + (panel * job.blocks + block) * kBlockBytes + unit % 4 * 16
                : job.codes;
    copy_async(to + (i - unit) + swizzled(unit), from, present);
  }
#pragma unroll
  for (int i = thread; i < C::kCodeUnits; i += kTileThreads) {
    constexpr int kUnitsPerStep = C::kCodeUnits / kChunkSteps;
    const std::int32_t at = step + i / kUnitsPerStep;
    const bool present = at < job.steps;
    const std::int8_t* from =
        present ? job.x.codes + (at * job.x.padded + first_token) * kStep + i % kUnitsPerStep * 16
                : job.x.codes;
    copy_async(to + C::kWeightUnits + Unit::place_of(i), from, present);
  }
}

template <int kBits>
__device__ inline WeightLoads<kBits> read_weights(const uint4* panel, int step, int chunk, int t) {
  constexpr int kCount = WeightLoads<kBits>::kCount;
  WeightLoads<kBits> w;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int unit = step * 16 * kCount + (t * kCount + i) * 4 + chunk;
    w.quads[i] = panel[swizzled(unit)];
  }
  return w;
}

template <int kBits, int kTokens, typename Unit>
__global__ void __launch_bounds__(kTileThreads) multiply_tiled(MultiplyJob job) {
  using C = Chunk<kBits, kTokens>;
  constexpr int kTiles = kTokens / 16;  // of 8 tokens, a warp
  alignas(1024) __shared__ uint4 stages[C::kStages][C::kUnits];

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4, chunk = g % 4;
  const int tile_panel = warp % 4 * 2 + g / 4;
  const std::int64_t first_panel = std::int64_t{blockIdx.x} * kTilePanels;
  const std::int64_t panel = first_panel + tile_panel;
  const std::int64_t block_token = std::int64_t{blockIdx.y} * kTokens;
  const int warp_token = warp / 4 * (kTokens / 2);
  const std::int64_t lane_token = block_token + warp_token + 2 * t;

  const std::int64_t split = blockIdx.z;
  std::int32_t group = static_cast<std::int32_t>(job.groups * split / job.splits);
  const auto end_group = static_cast<std::int32_t>(job.groups * (split + 1) / job.splits);
  const std::int32_t begin = group * job.steps_per_group;
  std::int32_t end = end_group * job.steps_per_group;
  if (end > job.steps) end = job.steps;
  const std::int32_t chunks = ceil_div(end - begin, kChunkSteps);

  wait_for_previous_kernel();
#pragma unroll
  for (int i = 0; i < C::kStages - 1; ++i) {
    if (i < chunks) {
      copy_chunk<kBits, kTokens, Unit>(job, stages[i], first_panel, block_token,
                                       begin + i * kChunkSteps);
    }
    commit_copies();
  }
  Sums<kTiles> sums;
  GroupScales scales = load_scales(job, panel, chunk, group);
  std::int32_t left = job.steps_per_group;  // steps of this group
  for (std::int32_t c = 0; c < chunks; ++c) {
    wait_for_copies<C::kStages - 2>();
    Unit::publish_copies();
    __syncthreads();  // all have their copies, and are done with the stage that is filled next
    const std::int32_t ahead = c + C::kStages - 1;
    if (ahead < chunks) {
      copy_chunk<kBits, kTokens, Unit>(job, stages[ahead % C::kStages], first_panel, block_token,
                                       begin + ahead * kChunkSteps);
    }
    commit_copies();
    const uint4* stage = stages[c % C::kStages];
    const auto* codes =
        reinterpret_cast<const std::int8_t*>(stage + C::kWeightUnits) + warp_token * kStep;
    std::uint32_t a[kChunkSteps][2][4];
#pragma unroll
    for (int s = 0; s < kChunkSteps; ++s) {
      const std::int32_t step = begin + c * kChunkSteps + s;
      if (step >= end) break;
      unpack<kBits>(read_weights<kBits>(stage + tile_panel * C::kPanelUnits, s, chunk, t), a[s]);
      Unit::multiply(sums, a[s], codes + s * kTokens * kStep, lane);
      if (--left == 0 || step + 1 == end) {
        Unit::finish(sums, a);
        add_group<kTiles>(sums, scales, load_tokens<kTiles>(job, lane_token, group));
        left = job.steps_per_group;
        if (++group < end_group) scales = load_scales(job, panel, chunk, group);
      }
    }
    Unit::finish(sums, a);  // before others fill the stage anew
  }

  const std::int64_t column = panel * kPanel + 4 * chunk;
  const bool whole = job.splits == 1;
  const std::int64_t width = std::int64_t{gridDim.x} * kLargeColumns;
  float bias[4] = {};
  for (int c = 0; c < 4; ++c) {
    if (whole && column + c < job.n) bias[c] = bias_of(job, column + c);
  }
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int odd = i % 2;
    const float(&f)[4] = sums.floats[0][i / 2];
    const float(&h)[4] = sums.floats[1][i / 2];
    const std::int64_t token = lane_token + i / 2 * 8 + odd;
    float values[4] = {f[odd], f[odd + 2], h[odd], h[odd + 2]};
    if (!whole) {
      float* to = job.partials + (split * job.x.padded + token) * width + column;
      store(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
    } else if (token < job.rows && column < job.n) {
      const float scale = token_scale(job, token);
      for (int c = 0; c < 4; ++c) values[c] = values[c] * scale + bias[c];
      write_four(job, token, column, values);
    }
  }
}

}  // namespace qc::cuda

#endif  // QC_CUDA_MULTIPLY_TILED_H_
