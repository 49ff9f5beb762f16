// The loop of the probes. Internal linkage: the files that include this differ in their flags.
#ifndef QC_BENCH_PROBE_LOOP_H_
#define QC_BENCH_PROBE_LOOP_H_

#include <cstdint>

namespace qc::bench {
namespace {

// step(sum, a, b) adds one product of registers, `multiply_adds` of int8, to one of kSums sums.
template <int kSums, typename Sum, typename Bytes, typename Step>
inline double peak_loop(std::int64_t repeats, int multiply_adds, Sum zero, Bytes a, Bytes b,
                        Step step) {
  Sum sums[kSums];
  // Unrolled so that the sums are registers: GCC would clear an array in memory, and leave it
  // there.
#pragma GCC unroll 32
  for (int s = 0; s < kSums; ++s) sums[s] = zero;
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 32
    for (int s = 0; s < kSums; ++s) step(sums[s], a, b);
  }
  return static_cast<double>(repeats) * kSums * multiply_adds;
}

}  // namespace
}  // namespace qc::bench

#endif  // QC_BENCH_PROBE_LOOP_H_
