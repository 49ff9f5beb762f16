#include <immintrin.h>

#include "bench/probe.h"
#include "bench/probe_vnni256.h"

namespace qc::bench {

double peak_loop_avx512vnni(std::int64_t repeats) {
  constexpr int kSums = 24;
  constexpr int kMultiplyAdds = 64;
  __m512i sums[kSums] = {};
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(1);
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 32
    for (int s = 0; s < kSums; ++s) {
      __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[s]) : "v"(a), "v"(b));
    }
  }
  return static_cast<double>(repeats) * kSums * kMultiplyAdds;
}

double peak_loop_avx512vnni_256(std::int64_t repeats) { return peak_loop_vnni256(repeats); }

}  // namespace qc::bench
