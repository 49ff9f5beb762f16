// The product for few rows, where reading the weights is all that takes time.
//
// A block takes a panel and all rows; its lanes share out the strips. A lane's 16-byte loads are
// four columns of a strip, so a warp reads eight whole strips, one behind the other. Codes are
// multiplied as they are, the zero point and the multiple of a group applied to its sum:
//
//   sum of q (code - z) m  =  m (sum of q code  -  z sum of q)
//
// Where codes number levels, those stand for them.
#include "cuda/linear_job.h"

namespace qc::cuda {
namespace {

constexpr int kFewThreads = 128;
constexpr int kFewWarps = kFewThreads / kWarp;
constexpr int kColumns = 4;  // of a lane
constexpr int kLanesOfStrip = kPanel / kColumns;
constexpr int kStripsAtOnce = kFewThreads / kLanesOfStrip;

// What a lane reads of a strip.
template <int kForm>
struct StripLoads {
  uint4 blocks[Planes<kForm>::kBits];
  std::uint32_t groups[kGroupsOfStrip<kForm>];  // a byte for each column
};

template <int kForm>
__device__ inline StripLoads<kForm> load_strip(const LinearJob& job, std::int64_t panel, int chunk,
                                               std::int64_t strip) {
  StripLoads<kForm> w;
  const std::int64_t known = strip < job.strips ? strip : job.strips - 1;
  const auto* from = reinterpret_cast<const uint4*>(job.codes + (panel * job.strips + known) *
                                                                    Planes<kForm>::kStripBytes) +
                     chunk;
#pragma unroll
  for (int i = 0; i < Planes<kForm>::kBits; ++i) w.blocks[i] = load_once(from + i * kLanesOfStrip);
#pragma unroll
  for (int half = 0; half < kGroupsOfStrip<kForm>; ++half) {
    w.groups[half] = 0;
    if constexpr (Planes<kForm>::kGrouped) {
      const std::int64_t group = panel * job.group_count + group_at(job, known, half);
      w.groups[half] =
          load(reinterpret_cast<const std::uint32_t*>(job.groups + group * kPanel) + chunk);
    }
  }
  return w;
}

// Codes of a row in a strip, and what they sum to in each group.
template <int kForm>
struct RowLoads {
  std::uint32_t quads[kQuads];
  std::int32_t sums[kGroupsOfStrip<kForm>];
};

template <int kForm>
__device__ inline RowLoads<kForm> load_row(const LinearJob& job, std::int64_t strip, int row) {
  RowLoads<kForm> x;
  const auto* from =
      reinterpret_cast<const uint4*>(job.x.codes + (strip * job.x.padded + row) * kStrip);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 v = load(from + half);
    x.quads[4 * half] = v.x;
    x.quads[4 * half + 1] = v.y;
    x.quads[4 * half + 2] = v.z;
    x.quads[4 * half + 3] = v.w;
  }
  if constexpr (Planes<kForm>::kGrouped) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      x.sums[half] = 0;
#pragma unroll
      for (int i = 0; i < kQuads / 2; ++i) {
        x.sums[half] = dot_s8(x.quads[4 * half + i], 0x01010101, x.sums[half]);
      }
    }
  }
  return x;
}

// A column's part of a row's product.
template <int kForm>
__device__ inline std::uint32_t multiply_strip(const LinearJob& job, const RowLoads<kForm>& x,
                                               const std::uint32_t (&quads)[kQuads],
                                               const StripLoads<kForm>& w, int column) {
  using P = Planes<kForm>;
  constexpr int kParts = kGroupsOfStrip<kForm>;
  std::uint32_t sum = 0;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    std::int32_t dot = 0;
#pragma unroll
    for (int i = part * kQuads / kParts; i < (part + 1) * kQuads / kParts; ++i) {
      dot = dot_s8(quads[i], x.quads[i], dot);
    }
    if constexpr (P::kGrouped) {
      const int byte = static_cast<int>(w.groups[part] >> (8 * column) & 0xff);
      dot = (dot - P::zero_point(byte, job.levels) * x.sums[part]) * P::multiple(byte);
    }
    sum += static_cast<std::uint32_t>(dot);
  }
  return sum;
}

template <int kForm, int kRows>
__device__ inline void add_strip(const LinearJob& job, std::int64_t strip,
                                 const StripLoads<kForm>& w,
                                 std::uint32_t (&sums)[kRows][kColumns]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    std::uint32_t blocks[Planes<kForm>::kBits], quads[kQuads];
#pragma unroll
    for (int i = 0; i < Planes<kForm>::kBits; ++i) {
      const uint4& v = w.blocks[i];
      blocks[i] = c == 0 ? v.x : c == 1 ? v.y : c == 2 ? v.z : v.w;
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) quads[i] = quad_of<kForm>(job, blocks, i);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      sums[row][c] += multiply_strip<kForm>(job, load_row<kForm>(job, strip, row), quads, w, c);
    }
  }
}

// Adds up what the lanes of a warp have of each column: the warp's sum, in all of its lanes.
__device__ inline std::uint32_t sum_of_strips(std::uint32_t value) {
#pragma unroll
  for (int bit = kLanesOfStrip; bit < kWarp; bit *= 2) {
    value += __shfl_xor_sync(0xffffffff, value, bit);
  }
  return value;
}

template <int kForm, int kRows>
__global__ void __launch_bounds__(kFewThreads) few_rows_kernel(LinearJob job) {
  __shared__ std::uint32_t shares[kFewWarps][kRows][kPanel];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, chunk = thread % kLanesOfStrip;
  const std::int64_t panel = blockIdx.x;
  std::int64_t strip = thread / kLanesOfStrip;

  StripLoads<kForm> next = load_strip<kForm>(job, panel, chunk, strip);
  std::uint32_t sums[kRows][kColumns] = {};
  for (; strip < job.strips; strip += kStripsAtOnce) {
    const StripLoads<kForm> w = next;
    next = load_strip<kForm>(job, panel, chunk, strip + kStripsAtOnce);
    add_strip<kForm, kRows>(job, strip, w, sums);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const std::uint32_t sum = sum_of_strips(sums[row][c]);
      if (thread % kWarp < kLanesOfStrip) shares[warp][row][chunk * kColumns + c] = sum;
    }
  }
  __syncthreads();
  for (int i = thread; i < kRows * kPanel; i += kFewThreads) {
    const int row = i / kPanel, column = i % kPanel;
    std::uint32_t sum = 0;
#pragma unroll
    for (int w = 0; w < kFewWarps; ++w) sum += shares[w][row][column];
    finish(job, row, panel * kPanel + column, sum);
  }
}

template <int kForm>
void start_few_rows(const LinearJob& job, void* stream) {
  auto* kernel = few_rows_kernel<kForm, 16>;
  if (job.x.padded == 8) kernel = few_rows_kernel<kForm, 8>;
  if (job.x.padded == 4) kernel = few_rows_kernel<kForm, 4>;
  if (job.x.padded == 2) kernel = few_rows_kernel<kForm, 2>;
  if (job.x.padded == 1) kernel = few_rows_kernel<kForm, 1>;
  launch(kernel, dim3(static_cast<unsigned>(job.panels)), kFewThreads, stream, job);
}

}  // namespace

void multiply_few_rows(const LinearJob& job, int form, void* stream) {
  kernels::with_planes(form,
                       [&](auto planes) { start_few_rows<decltype(planes)::kForm>(job, stream); });
}

}  // namespace qc::cuda
