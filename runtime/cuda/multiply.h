// What the matrix products share: their arguments, fragments, the float part and the epilogue.
//
// Lane (g, t) = (lane / 4, lane % 4) of a warp holds four neighbouring columns of a pair of panels:
// column 4 (g % 4) of panel g / 4 and the three behind it, for the eight k that start at 8 t. One
// 16-byte load of layout 1 is exactly that, and feeds the A operands of two mmas: rows g and g + 8
// of mma j are columns 2 j and 2 j + 1. Which k an mma calls which is free as long as A and B
// agree: its k = 4 t .. 4 t + 3 are 8 t .. 8 t + 3 here, its k = 16 + 4 t .. are 8 t + 4 ...
#ifndef QC_CUDA_MULTIPLY_H_
#define QC_CUDA_MULTIPLY_H_

#include <cstdint>

#include "cuda/activations.h"
#include "cuda/device.h"

namespace qc::cuda {

inline constexpr int kPairColumns = 2 * kPanel;

struct MultiplyJob {
  Activations x;
  std::int64_t first, rows;  // of X: tokens [0, rows) here are rows first, first + 1, ..
  std::int64_t panels, blocks, n;
  std::int32_t steps, groups, steps_per_group;  // steps of 32 k; the last group may be short
  std::int32_t splits;                          // of the groups; 1 but in the large kernel
  float* partials;  // [splits, padded, n up to whole tiles], where splits > 1
  const std::uint8_t* codes;
  const std::uint16_t* scales;
  const std::uint8_t* zero_points;  // null: `starts` has them
  const float* bias;
  std::int32_t one_bias, grouped;  // grouped: a scale for each token and group
  std::int32_t overlap;            // the kernel begins while the quantization ends
  Element element;
  Output outputs[3];
};

// Kernels of each weight width; `tiles` of 8 tokens. They take tokens in x.padded.
void multiply_small(const MultiplyJob& job, int bits, int tiles, void* stream);
void multiply_large(const MultiplyJob& job, int bits, int tokens, void* stream);
void multiply_wgmma(const MultiplyJob& job, int bits, void* stream);  // compute capability 9.0

// Behind the products of many tokens, where job.splits > 1.
void add_split_sums(const MultiplyJob& job, void* stream);

// Columns in a tile of the large kernels, and tokens in one of multiply_wgmma.
inline constexpr int kLargeColumns = 128;
inline constexpr int kWgmmaTokens = 128;

// ---- device code ----

// The weights of one lane in one step of k: one 16-byte load for 4 bit, two for 8 bit.
template <int kBits>
struct WeightLoads {
  static constexpr int kCount = kBits / 4;
  uint4 quads[kCount];
};

// Fragments of both mmas.
template <int kBits>
__device__ inline void unpack(const WeightLoads<kBits>& w, std::uint32_t (&a)[2][4]) {
  static_assert(kBits == 4 || kBits == 8, "no way to unpack this width");
  if constexpr (kBits == 4) {
    const std::uint32_t columns[4] = {w.quads[0].x, w.quads[0].y, w.quads[0].z, w.quads[0].w};
    for (int c = 0; c < 4; ++c) {
      a[c / 2][c % 2] = columns[c] & 0x0f0f0f0f;
      a[c / 2][c % 2 + 2] = columns[c] >> 4 & 0x0f0f0f0f;
    }
  } else {
    for (int half = 0; half < 2; ++half) {
      const uint4 quad = w.quads[half];
      a[0][2 * half] = quad.x;
      a[0][2 * half + 1] = quad.y;
      a[1][2 * half] = quad.z;
      a[1][2 * half + 1] = quad.w;
    }
  }
}

// A share of the groups, and its steps.
struct Share {
  std::int32_t group, end_group, begin, end;
};

__device__ inline Share share_of(const MultiplyJob& job, std::int64_t index, std::int64_t count) {
  Share share;
  share.group = static_cast<std::int32_t>(job.groups * index / count);
  share.end_group = static_cast<std::int32_t>(job.groups * (index + 1) / count);
  share.begin = share.group * job.steps_per_group;
  share.end = share.end_group * job.steps_per_group;
  if (share.end > job.steps) share.end = job.steps;
  return share;
}

// Integer and float sums of one lane: its four columns by tokens 2 t and 2 t + 1 of each tile.
template <int kTiles>
struct Sums {
  std::int32_t dots[2][kTiles][4] = {};
  float floats[2][kTiles][4] = {};
};

// Scales and zero points of a lane's columns in one group.
struct GroupScales {
  uint2 halves;
  std::uint32_t zero_points;  // 1 each where `starts` has them
};

__device__ inline GroupScales load_scales(const MultiplyJob& job, std::int64_t panel, int chunk,
                                          std::int32_t group) {
  if (panel >= job.panels) return {make_uint2(0, 0), 0};
  const std::int64_t at = (panel * job.groups + group) * kPanel + 4 * chunk;
  GroupScales s;
  s.halves = load(reinterpret_cast<const uint2*>(job.scales + at));
  s.zero_points = job.zero_points != nullptr
                      ? load(reinterpret_cast<const std::uint32_t*>(job.zero_points + at))
                      : 0x01010101;
  return s;
}

// `starts` and, where grouped, scales of a lane's tokens in one group.
template <int kTiles>
struct GroupTokens {
  int2 starts[kTiles];
  float2 scales[kTiles];
};

// `token`: the first of the lane's in tile 0.
template <int kTiles>
__device__ inline GroupTokens<kTiles> load_tokens(const MultiplyJob& job, std::int64_t token,
                                                  std::int32_t group) {
  GroupTokens<kTiles> tokens;
  const std::int64_t at = group * job.x.padded + token;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    tokens.starts[i] = load_result(reinterpret_cast<const int2*>(job.x.starts + at + 8 * i));
    tokens.scales[i] = job.grouped != 0
                           ? load_result(reinterpret_cast<const float2*>(job.x.scales + at + 8 * i))
                           : make_float2(1.0f, 1.0f);
  }
  return tokens;
}

// Ends a group: its integer sums become float and start anew.
template <int kTiles>
__device__ inline void add_group(Sums<kTiles>& sums, const GroupScales& w,
                                 const GroupTokens<kTiles>& x) {
  float scales[4];
  std::int32_t zero_points[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const std::uint32_t pair = c < 2 ? w.halves.x : w.halves.y;
    scales[c] = float_of_half(static_cast<std::uint16_t>(pair >> (c % 2 * 16)));
    zero_points[c] = static_cast<std::int32_t>(w.zero_points >> (8 * c) & 0xff);
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int column = 2 * j + c / 2;
        const std::int32_t start = c % 2 == 0 ? x.starts[i].x : x.starts[i].y;
        const float x_scale = c % 2 == 0 ? x.scales[i].x : x.scales[i].y;
        const std::int32_t dot = sums.dots[j][i][c] + start * zero_points[column];
        sums.floats[j][i][c] =
            fmaf(static_cast<float>(dot), scales[column] * x_scale, sums.floats[j][i][c]);
        sums.dots[j][i][c] = 0;
      }
    }
  }
}

// The scale of a whole token, where it is not in the sums already.
__device__ inline float token_scale(const MultiplyJob& job, std::int64_t token) {
  return job.grouped != 0 ? 1.0f : load_result(job.x.scales + token);
}

__device__ inline float bias_of(const MultiplyJob& job, std::int64_t column) {
  return load(job.bias + (job.one_bias != 0 ? 0 : column));
}

// Writes one value of the result to the output that its column belongs to.
__device__ inline void write(const MultiplyJob& job, std::int64_t token, std::int64_t column,
                             float value) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const Output& out = job.outputs[i];
    if (column < out.begin || column >= out.end || out.data == nullptr) continue;
    const std::int64_t at = (job.first + token) * (out.end - out.begin) + column - out.begin;
    if (job.element == Element::kFloat32) {
      store(static_cast<float*>(out.data) + at, value);
    } else {
      store(static_cast<std::uint16_t*>(out.data) + at, narrow(job.element, value));
    }
  }
}

// Writes four neighbouring columns, at once where they lie aligned in one output.
__device__ inline void write_four(const MultiplyJob& job, std::int64_t token, std::int64_t column,
                                  const float (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const Output& out = job.outputs[i];
    if (column < out.begin || column + 4 > out.end) continue;
    if (out.data == nullptr) return;
    const std::int64_t at = (job.first + token) * (out.end - out.begin) + column - out.begin;
    if (job.element == Element::kFloat32) {
      float* to = static_cast<float*>(out.data) + at;
      if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0) break;
      store(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
    } else {
      std::uint16_t* to = static_cast<std::uint16_t*>(out.data) + at;
      if (reinterpret_cast<std::uintptr_t>(to) % 8 != 0) break;
      std::uint32_t packed[2];
      for (int pair = 0; pair < 2; ++pair) {
        packed[pair] = narrow(job.element, values[2 * pair]) |
                       static_cast<std::uint32_t>(narrow(job.element, values[2 * pair + 1])) << 16;
      }
      store(reinterpret_cast<uint2*>(to), make_uint2(packed[0], packed[1]));
    }
    return;
  }
  for (int c = 0; c < 4; ++c) {
    if (column + c < job.n) write(job, token, column + c, values[c]);
  }
}

}  // namespace qc::cuda

#endif  // QC_CUDA_MULTIPLY_H_
