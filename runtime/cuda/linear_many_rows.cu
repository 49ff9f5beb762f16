// The product for many rows, with the tensor instructions of every GPU since Ampere: a block takes
// 128 columns by 64 or 128 rows.
//
// Weights are expanded to int8 once for all rows of the tile, into shared memory, in chunks of two
// strips; those of the next chunk are on their way meanwhile. Eight warps: four across the columns
// (a pair of panels each), two across the rows.
#include "cuda/linear_job.h"

namespace qc::cuda {
namespace {

constexpr int kManyThreads = 256;
constexpr int kTilePanels = 8;
constexpr int kPairPanels = 2;  // of a warp
constexpr int kChunkStrips = 2;

// Dwords between quads, and between strips, in shared memory: lanes that read or write at once meet
// different banks.
constexpr int kQuadStride = kPanel + 4;
constexpr int kStripStride = kQuads * kQuadStride + 16;

template <int kTokens>
struct Stage {
  std::uint32_t weights[kTilePanels][kChunkStrips][kStripStride];  // [quad, column] of a strip
  uint4 codes[kChunkStrips][kTokens * kStrip / 16];
};

// What a thread reads of a chunk: a column of one strip. A warp reads both strips of its panel.
template <int kForm>
struct ColumnLoads {
  std::uint32_t blocks[Planes<kForm>::kBits];
  int groups[kGroupsOfStrip<kForm>];
};

struct ColumnPlace {
  int panel, strip, column;  // in the chunk
};

__device__ inline ColumnPlace column_place() {
  const int thread = static_cast<int>(threadIdx.x);
  return {thread / kWarp, thread / kPanel % kChunkStrips, thread % kPanel};
}

template <int kForm>
__device__ inline ColumnLoads<kForm> load_column(const LinearJob& job, std::int64_t chunk) {
  const ColumnPlace at = column_place();
  const std::int64_t wanted_panel = std::int64_t{blockIdx.x} * kTilePanels + at.panel;
  const std::int64_t panel = wanted_panel < job.panels ? wanted_panel : job.panels - 1;
  const std::int64_t wanted_strip = chunk * kChunkStrips + at.strip;
  const std::int64_t strip = wanted_strip < job.strips ? wanted_strip : job.strips - 1;
  const auto* from = reinterpret_cast<const std::uint32_t*>(
      job.codes + (panel * job.strips + strip) * Planes<kForm>::kStripBytes);
  ColumnLoads<kForm> w;
#pragma unroll
  for (int i = 0; i < Planes<kForm>::kBits; ++i) w.blocks[i] = load(from + i * kPanel + at.column);
#pragma unroll
  for (int half = 0; half < kGroupsOfStrip<kForm>; ++half) {
    w.groups[half] = 0;
    if constexpr (Planes<kForm>::kGrouped) {
      const std::int64_t group = panel * job.group_count + group_at(job, strip, half);
      w.groups[half] = load(job.groups + group * kPanel + at.column);
    }
  }
  return w;
}

// The bytes of `a` less those of `b`, each modulo 256.
__device__ inline std::uint32_t subtract_bytes(std::uint32_t a, std::uint32_t b) {
  constexpr std::uint32_t kHighest = 0x80808080;
  return ((a | kHighest) - (b & ~kHighest)) ^ ((a ^ ~b) & kHighest);
}

// Stores the int8 weights of a column's strip.
template <int kForm>
__device__ inline void expand(const LinearJob& job, const ColumnLoads<kForm>& w,
                              std::uint32_t* strip) {
  using P = Planes<kForm>;
  std::uint32_t* to = strip + column_place().column;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    std::uint32_t quad = quad_of<kForm>(job, w.blocks, i);
    if constexpr (P::kGrouped) {
      // No number times the multiple leaves its byte. A zero point may, where there are levels.
      const int byte = w.groups[i * 2 / kQuads];
      const auto multiple = static_cast<std::uint32_t>(P::multiple(byte));
      auto zero = static_cast<std::uint32_t>(P::zero_point(byte, job.levels)) * multiple;
      if constexpr (P::kHasLevels) zero &= 0xff;
      quad = subtract_bytes(quad * multiple, zero * 0x01010101);
    }
    store(to + i * kQuadStride, quad);
  }
}

// Starts the copies of a chunk's codes; zeros beyond the last strip.
template <int kTokens>
__device__ inline void copy_codes(const LinearJob& job, Stage<kTokens>& to, std::int64_t chunk) {
  constexpr int kUnits = kTokens * kStrip / 16;  // of a strip
  const std::int64_t first = std::int64_t{blockIdx.y} * kTokens;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kChunkStrips * kUnits; i += kManyThreads) {
    const std::int64_t strip = chunk * kChunkStrips + i / kUnits;
    const bool present = strip < job.strips;
    const std::int8_t* from =
        present ? job.x.codes + (strip * job.x.padded + first) * kStrip + i % kUnits * 16
                : job.x.codes;
    copy_async(&to.codes[i / kUnits][i % kUnits], from, present);
  }
  commit_copies();
}

// Tiles of 8 rows in the half that a warp takes.
template <int kTokens>
inline constexpr int kRowTiles = kTokens / 2 / 8;

template <int kTokens>
using TileSums = std::int32_t[kPairPanels][kRowTiles<kTokens>][4];

// A lane's four successive bytes of a fragment are quads 2t and 2t + 1 of a strip: which values of
// k meet is free, as long as weights and codes agree.
template <int kTokens>
__device__ inline void multiply_chunk(const Stage<kTokens>& stage, TileSums<kTokens>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int s = 0; s < kChunkStrips; ++s) {
    std::uint32_t a[kPairPanels][4];
#pragma unroll
    for (int p = 0; p < kPairPanels; ++p) {
      const std::uint32_t* from =
          stage.weights[warp % 4 * kPairPanels + p][s] + 2 * t * kQuadStride + g;
      a[p][0] = from[0];
      a[p][1] = from[8];
      a[p][2] = from[kQuadStride];
      a[p][3] = from[kQuadStride + 8];
    }
    const auto* codes = reinterpret_cast<const std::int8_t*>(stage.codes[s]) +
                        (warp / 4 * (kTokens / 2) + g) * kStrip + 8 * t;
#pragma unroll
    for (int tile = 0; tile < kRowTiles<kTokens>; ++tile) {
      const uint2 b = *reinterpret_cast<const uint2*>(codes + 8 * tile * kStrip);
#pragma unroll
      for (int p = 0; p < kPairPanels; ++p) mma_s8_s8(sums[p][tile], a[p], b);
    }
  }
}

template <int kTokens>
__device__ inline void finish_tile(const LinearJob& job, const TileSums<kTokens>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t panel = std::int64_t{blockIdx.x} * kTilePanels + warp % 4 * kPairPanels;
  const std::int64_t row =
      std::int64_t{blockIdx.y} * kTokens + warp / 4 * (kTokens / 2) + lane % 4 * 2;
#pragma unroll
  for (int p = 0; p < kPairPanels; ++p) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles<kTokens>; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        finish(job, row + 8 * tile + i % 2, (panel + p) * kPanel + lane / 4 + i / 2 * 8,
               static_cast<std::uint32_t>(sums[p][tile][i]));
      }
    }
  }
}

template <int kForm, int kTokens>
__global__ void __launch_bounds__(kManyThreads) many_rows_kernel(LinearJob job) {
  alignas(16) __shared__ Stage<kTokens> stages[2];
  const ColumnPlace at = column_place();
  const std::int64_t chunks = ceil_div(job.strips, kChunkStrips);
  TileSums<kTokens> sums = {};
  copy_codes<kTokens>(job, stages[0], 0);
  ColumnLoads<kForm> next = load_column<kForm>(job, 0);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    Stage<kTokens>& stage = stages[chunk % 2];
    expand<kForm>(job, next, stage.weights[at.panel][at.strip]);
    if (chunk + 1 < chunks) next = load_column<kForm>(job, chunk + 1);
    wait_for_copies();
    __syncthreads();  // the stage is whole, and all are done with the other one
    if (chunk + 1 < chunks) copy_codes<kTokens>(job, stages[(chunk + 1) % 2], chunk + 1);
    multiply_chunk<kTokens>(stage, sums);
  }
  finish_tile<kTokens>(job, sums);
}

template <int kForm>
void start_many_rows(const LinearJob& job, int tokens, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(job.panels, kTilePanels)),
                  static_cast<unsigned>(job.x.padded / tokens));
  auto* kernel = many_rows_kernel<kForm, 64>;
  if (tokens == 128) kernel = many_rows_kernel<kForm, 128>;
  launch(kernel, grid, kManyThreads, stream, job);
}

}  // namespace

void multiply_many_rows(const LinearJob& job, int form, int tokens, void* stream) {
  kernels::with_planes(
      form, [&](auto planes) { start_many_rows<decltype(planes)::kForm>(job, tokens, stream); });
}

}  // namespace qc::cuda
