// What the kernels of the Linear ops share: their job, how packed bytes become codes, and how sums
// become results.
#ifndef QC_CUDA_LINEAR_JOB_H_
#define QC_CUDA_LINEAR_JOB_H_

#include <cstring>

#include "cuda/activations.h"
#include "cuda/device.h"
#include "cuda/linear.h"

namespace qc::cuda {

inline constexpr std::int64_t kFewRows = 16;  // up to here reading the weights takes longest

// Rows [first, first + rows) of a product, quantized. Sums are of 32 bits without a sign: those of
// weights that are no int8 may wrap.
struct LinearJob {
  Activations x;
  const std::uint8_t* codes;
  const std::uint8_t* groups;  // null for 8 bits
  const float* scales;
  const float* bias;
  std::int64_t first, rows, n;
  std::int64_t panels, strips, group_count;
  std::int32_t group_shift;  // log2 of the group size
  std::int32_t one_bias;
  Element element;
  kernels::Levels levels;
  Output outputs[kOutputs];
};

void multiply_few_rows(const LinearJob& job, int form, void* stream);  // x.padded <= kFewRows
void multiply_many_rows(const LinearJob& job, int form, int tokens, void* stream);  // 64 or 128

// The levels of four codes of `kBits` bits, a byte each.
template <int kBits>
__device__ inline std::uint32_t look_up(const kernels::Levels& levels, std::uint32_t codes) {
  std::uint32_t words[4];
  std::memcpy(words, levels.values, sizeof words);
  // A digit of four bits for each code.
  const std::uint32_t digits = byte_of_each(codes | codes >> 4, 0, 0x20);
  if constexpr (kBits < 4) return byte_of_each(words[0], words[1], digits);
  const std::uint32_t low = byte_of_each(words[0], words[1], digits & 0x7777);
  const std::uint32_t high = byte_of_each(words[2], words[3], digits & 0x7777);
  const std::uint32_t is_high = (codes >> 3 & 0x01010101) * 0xff;
  return (low & ~is_high) | (high & is_high);
}

// Numbers 4i .. 4i + 3 of a column's strip, a byte each, from its dword of each block.
template <int kForm>
__device__ inline std::uint32_t quad_of(const LinearJob& job,
                                        const std::uint32_t (&blocks)[Planes<kForm>::kBits],
                                        int i) {
  using P = Planes<kForm>;
  constexpr std::uint32_t kBytes = 0x01010101;
  std::uint32_t codes = blocks[P::block(P::kLow, i)] >> P::shift(P::kLow, i);
  codes &= kBytes * ((1 << P::kLow) - 1);
  if constexpr (P::kHigh > 0) {
    const std::uint32_t high = blocks[P::kLow + P::block(P::kHigh, i)] >> P::shift(P::kHigh, i);
    codes |= (high & kBytes * ((1 << P::kHigh) - 1)) << P::kLow;
  }
  if constexpr (P::kHasLevels) return look_up<P::kBits>(job.levels, codes);
  return codes;
}

// Groups that values of a strip may belong to: two of 16.
template <int kForm>
inline constexpr int kGroupsOfStrip = Planes<kForm>::kGrouped ? 2 : 1;

// The group of a half of a strip.
__device__ inline std::int64_t group_at(const LinearJob& job, std::int64_t strip, int half) {
  const std::int64_t group = (strip * kStrip + half * (kStrip / 2)) >> job.group_shift;
  return group < job.group_count ? group : job.group_count - 1;
}

// Rounds each operation by itself, as the formula says.
__device__ inline void finish(const LinearJob& job, std::int64_t row, std::int64_t column,
                              std::uint32_t sum) {
  if (row >= job.rows || column >= job.n) return;
  const float dot = __int2float_rn(static_cast<std::int32_t>(sum));
  const float scaled = __fmul_rn(dot, load(job.scales + column));
  const float product = __fmul_rn(scaled, load(job.x.scales + row));
  const float value = __fadd_rn(product, load(job.bias + (job.one_bias != 0 ? 0 : column)));
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const Output& out = job.outputs[i];
    if (column < out.begin || column >= out.end || out.data == nullptr) continue;
    const std::int64_t at = (job.first + row) * (out.end - out.begin) + column - out.begin;
    if (job.element == Element::kFloat32) {
      store(static_cast<float*>(out.data) + at, value);
    } else {
      store(static_cast<std::uint16_t*>(out.data) + at, narrow(job.element, value));
    }
  }
}

}  // namespace qc::cuda

#endif  // QC_CUDA_LINEAR_JOB_H_
