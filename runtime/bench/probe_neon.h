// The shape of the Arm probes; `Step` adds one product of registers to a sum.
#ifndef QC_BENCH_PROBE_NEON_H_
#define QC_BENCH_PROBE_NEON_H_

#include <arm_neon.h>

#include <cstdint>

namespace qc::bench {
namespace {

template <typename Step>
inline double peak_loop_neon(std::int64_t repeats, int multiply_adds, Step step) {
  constexpr int kSums = 16;
  int32x4_t sums[kSums] = {};
  const int8x16_t a = vdupq_n_s8(3);
  const int8x16_t b = vdupq_n_s8(1);
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) step(sums[s], a, b);
  }
  return static_cast<double>(repeats) * kSums * multiply_adds;
}

}  // namespace
}  // namespace qc::bench

#endif  // QC_BENCH_PROBE_NEON_H_
