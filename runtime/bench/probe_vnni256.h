// The probe of vpdpbusd on 256-bit registers; the files that include this differ in its encoding.
#ifndef QC_BENCH_PROBE_VNNI256_H_
#define QC_BENCH_PROBE_VNNI256_H_

#include <immintrin.h>

#include <cstdint>

namespace qc::bench {
namespace {

inline double peak_loop_vnni256(std::int64_t repeats) {
  constexpr int kSums = 12;
  constexpr int kMultiplyAdds = 32;
  __m256i sums[kSums] = {};
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(1);
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) {
#ifdef __AVXVNNI__
      __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums[s]) : "x"(a), "x"(b));
#else
      __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[s]) : "v"(a), "v"(b));
#endif
    }
  }
  return static_cast<double>(repeats) * kSums * kMultiplyAdds;
}

}  // namespace
}  // namespace qc::bench

#endif  // QC_BENCH_PROBE_VNNI256_H_
