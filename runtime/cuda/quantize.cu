// A block of threads quantizes a token: one pass for the largest magnitude of the row, one for the
// codes. A lane takes eight neighbouring values of k at a time, and stores their codes at once.
#include "cuda/activations.h"
#include "cuda/device.h"

namespace qc::cuda {
namespace {

constexpr int kQuantizeThreads = 256;
constexpr int kPerLane = 8;
constexpr std::uint32_t kInfinity = 0x7f800000;  // magnitudes from here on are not finite

__device__ inline std::uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffff; }

__device__ inline std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

// The largest value among the lanes of a warp.
__device__ inline std::uint32_t max_of_warp(std::uint32_t value) {
  for (int bit = 1; bit < kWarp; bit *= 2) {
    value = larger(value, __shfl_xor_sync(0xffffffff, value, bit));
  }
  return value;
}

// Values [at, at + 8) of a row, zeros beyond k. `whole`: rows are aligned to 16 bytes.
__device__ inline void load_values(float (&v)[kPerLane], const QuantizeJob& job, std::int64_t row,
                                   std::int64_t at, bool whole) {
  const std::int64_t from = row * job.k + at;
  if (job.element == Element::kFloat32) {
    const float* x = static_cast<const float*>(job.x) + from;
    if (whole && at + kPerLane <= job.k) {
      for (int half = 0; half < 2; ++half) {
        const float4 quad = load(reinterpret_cast<const float4*>(x) + half);
        v[4 * half] = quad.x;
        v[4 * half + 1] = quad.y;
        v[4 * half + 2] = quad.z;
        v[4 * half + 3] = quad.w;
      }
      return;
    }
    for (int i = 0; i < kPerLane; ++i) v[i] = at + i < job.k ? load(x + i) : 0.0f;
    return;
  }
  const auto* x = static_cast<const std::uint16_t*>(job.x) + from;
  if (whole && at + kPerLane <= job.k) {
    const uint4 all = load(reinterpret_cast<const uint4*>(x));
    const std::uint32_t pairs[4] = {all.x, all.y, all.z, all.w};
    for (int i = 0; i < kPerLane; ++i) {
      v[i] = widen(job.element, static_cast<std::uint16_t>(pairs[i / 2] >> (i % 2 * 16)));
    }
    return;
  }
  for (int i = 0; i < kPerLane; ++i) {
    v[i] = at + i < job.k ? widen(job.element, load(x + i)) : 0.0f;
  }
}

__device__ inline float scale_of(std::uint32_t peak_bits) {
  const float scale = __fdiv_rn(__uint_as_float(peak_bits), 127.0f);
  return scale == 0.0f ? 1.0f : scale;
}

__device__ inline std::int32_t code_of(float x, float scale) {
  return __float2int_rn(fmaxf(fminf(__fdiv_rn(x, scale), 127.0f), -127.0f));
}

// The largest magnitude of a row, known to all threads of the block.
__device__ inline std::uint32_t row_peak(const QuantizeJob& job, std::int64_t row, bool whole) {
  __shared__ std::uint32_t peaks[kQuantizeThreads / kWarp];
  std::uint32_t peak = 0;
  for (std::int64_t at = threadIdx.x * kPerLane; at < job.k; at += kQuantizeThreads * kPerLane) {
    float v[kPerLane];
    load_values(v, job, row, at, whole);
    for (int i = 0; i < kPerLane; ++i) peak = larger(peak, magnitude_bits(v[i]));
  }
  peak = max_of_warp(peak);
  if (threadIdx.x % kWarp == 0) peaks[threadIdx.x / kWarp] = peak;
  __syncthreads();
  for (int i = 0; i < kQuantizeThreads / kWarp; ++i) peak = larger(peak, peaks[i]);
  return peak;
}

__global__ void __launch_bounds__(kQuantizeThreads) quantize_token(QuantizeJob job) {
  const std::int64_t token = blockIdx.x;
  const std::int64_t row = job.first + token;
  const bool present = token < job.rows;
  const int width = job.element == Element::kFloat32 ? 4 : 2;
  const bool whole = reinterpret_cast<std::uintptr_t>(job.x) % 16 == 0 && job.k * width % 16 == 0;
  const std::uint32_t peak = present ? row_peak(job, row, whole) : 0;
  const bool finite = peak < kInfinity;
  const float scale = job.static_scale != 0.0f ? job.static_scale : scale_of(finite ? peak : 0);
  const float broken = __uint_as_float(0x7fc00000);  // NaN, which the products pass on
  if (threadIdx.x == 0) store(job.to.scales + token, finite ? scale : broken);

  const std::int64_t end = ceil_div(job.k, kStrip) * kStrip;
  for (std::int64_t at = threadIdx.x * kPerLane; at < end; at += kQuantizeThreads * kPerLane) {
    float v[kPerLane] = {};
    if (present && finite) load_values(v, job, row, at, whole);
    std::uint32_t fours[2] = {};
    for (int i = 0; i < kPerLane; ++i) {
      const auto code = static_cast<std::uint32_t>(code_of(v[i], scale));
      fours[i / 4] |= (code & 0xff) << (i % 4 * 8);
    }
    std::int8_t* to = job.to.codes + (at / kStrip * job.to.padded + token) * kStrip + at % kStrip;
    store(reinterpret_cast<uint2*>(to), make_uint2(fours[0], fours[1]));
  }
}

}  // namespace

void quantize(const QuantizeJob& job, void* stream) {
  launch(quantize_token, dim3(static_cast<unsigned>(job.to.padded)), kQuantizeThreads, stream, job);
}

}  // namespace qc::cuda
