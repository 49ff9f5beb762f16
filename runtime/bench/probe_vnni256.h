// The probe of vpdpbusd on 256-bit registers; the files that include this differ in its encoding.
#ifndef QC_BENCH_PROBE_VNNI256_H_
#define QC_BENCH_PROBE_VNNI256_H_

#include <immintrin.h>

#include "bench/probe_loop.h"

namespace qc::bench {
namespace {

inline double peak_loop_vnni256(std::int64_t repeats) {
  const auto step = [](__m256i& sum, __m256i a, __m256i b) {
#ifdef __AVXVNNI__
    __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#endif
  };
  return peak_loop<12>(repeats, 32, _mm256_setzero_si256(), _mm256_set1_epi8(3),
                       _mm256_set1_epi8(1), step);
}

}  // namespace
}  // namespace qc::bench

#endif  // QC_BENCH_PROBE_VNNI256_H_
