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

// Tiles of 8 tokens in the half that a warp takes.
template <int kTokens>
inline constexpr int kTilesOfWarp = kTokens / 2 / 8;

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

// Where a lane is: its panel and its chunk of columns there, and the tokens of its warp.
struct TilePlace {
  int lane, t, chunk;
  int tile_panel, warp_token;  // in the tile
  std::int64_t first_panel, panel;
  std::int64_t first_token, token;  // `token`: the lane's first
};

template <int kTokens>
__device__ inline TilePlace tile_place() {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  TilePlace at;
  at.lane = static_cast<int>(threadIdx.x) % kWarp;
  at.t = at.lane % 4;
  at.chunk = at.lane / 4 % 4;
  at.tile_panel = warp % 4 * 2 + at.lane / 16;
  at.warp_token = warp / 4 * (kTokens / 2);
  at.first_panel = std::int64_t{blockIdx.x} * kTilePanels;
  at.panel = at.first_panel + at.tile_panel;
  at.first_token = std::int64_t{blockIdx.y} * kTokens;
  at.token = at.first_token + at.warp_token + 2 * at.t;
  return at;
}

// Multiplies the steps of a chunk that lies in `stage`. `group`, `left` (steps of it) and `scales`
// go on to the next one.
template <int kBits, int kTokens, typename Unit>
__device__ inline void multiply_chunk(const MultiplyJob& job, const TilePlace& at,
                                      const Share& share, const uint4* stage, std::int32_t first,
                                      std::int32_t& group, std::int32_t& left, GroupScales& scales,
                                      Sums<kTilesOfWarp<kTokens>>& sums) {
  using C = Chunk<kBits, kTokens>;
  const auto* codes =
      reinterpret_cast<const std::int8_t*>(stage + C::kWeightUnits) + at.warp_token * kStep;
  std::uint32_t a[kChunkSteps][2][4];
#pragma unroll
  for (int s = 0; s < kChunkSteps; ++s) {
    const std::int32_t step = first + s;
    if (step >= share.end) break;
    const uint4* panel = stage + at.tile_panel * C::kPanelUnits;
    unpack<kBits>(read_weights<kBits>(panel, s, at.chunk, at.t), a[s]);
    Unit::multiply(sums, a[s], codes + s * kTokens * kStep, at.lane);
    if (--left == 0 || step + 1 == share.end) {
      Unit::finish(sums, a);
      add_group<kTilesOfWarp<kTokens>>(sums, scales,
                                       load_tokens<kTilesOfWarp<kTokens>>(job, at.token, group));
      left = job.steps_per_group;
      if (++group < share.end_group) scales = load_scales(job, at.panel, at.chunk, group);
    }
  }
  Unit::finish(sums, a);  // before others fill the stage anew
}

// Writes the sums of a lane: to the outputs, or where splits meet.
template <int kTiles>
__device__ inline void write_tile(const MultiplyJob& job, const TilePlace& at,
                                  const Sums<kTiles>& sums) {
  const std::int64_t column = at.panel * kPanel + 4 * at.chunk;
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
    const std::int64_t token = at.token + i / 2 * 8 + odd;
    float values[4] = {f[odd], f[odd + 2], h[odd], h[odd + 2]};
    if (!whole) {
      float* to = job.partials + (blockIdx.z * job.x.padded + token) * width + column;
      store(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
    } else if (token < job.rows && column < job.n) {
      const float scale = token_scale(job, token);
      for (int c = 0; c < 4; ++c) values[c] = values[c] * scale + bias[c];
      write_four(job, token, column, values);
    }
  }
}

template <int kBits, int kTokens, typename Unit>
__global__ void __launch_bounds__(kTileThreads) multiply_tiled(MultiplyJob job) {
  using C = Chunk<kBits, kTokens>;
  alignas(1024) __shared__ uint4 stages[C::kStages][C::kUnits];
  const TilePlace at = tile_place<kTokens>();
  const Share share = share_of(job, blockIdx.z, job.splits);
  const std::int32_t chunks = ceil_div(share.end - share.begin, kChunkSteps);
  const auto copy = [&](std::int32_t chunk) {
    if (chunk < chunks) {
      copy_chunk<kBits, kTokens, Unit>(job, stages[chunk % C::kStages], at.first_panel,
                                       at.first_token, share.begin + chunk * kChunkSteps);
    }
    commit_copies();
  };

  wait_for_previous_kernel();
#pragma unroll
  for (int i = 0; i < C::kStages - 1; ++i) copy(i);
  Sums<kTilesOfWarp<kTokens>> sums;
  std::int32_t group = share.group;
  std::int32_t left = job.steps_per_group;
  GroupScales scales = load_scales(job, at.panel, at.chunk, group);
  for (std::int32_t c = 0; c < chunks; ++c) {
    wait_for_copies<C::kStages - 2>();
    Unit::publish_copies();
    __syncthreads();  // all have their copies, and are done with the stage that is filled next
    copy(c + C::kStages - 1);
    multiply_chunk<kBits, kTokens, Unit>(job, at, share, stages[c % C::kStages],
                                         share.begin + c * kChunkSteps, group, left, scales, sums);
  }
  write_tile<kTilesOfWarp<kTokens>>(job, at, sums);
}

}  // namespace qc::cuda

#endif  // QC_CUDA_MULTIPLY_TILED_H_
