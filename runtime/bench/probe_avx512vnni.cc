#include <immintrin.h>

#include "bench/probe.h"
#include "bench/probe_loop.h"

namespace qc::bench {

double peak_loop_avx512vnni(std::int64_t repeats) {
  const auto step = [](__m512i& sum, __m512i a, __m512i b) {
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  };
  return peak_loop<24>(repeats, 64, _mm512_setzero_si512(), _mm512_set1_epi8(3),
                       _mm512_set1_epi8(1), step);
}

}  // namespace qc::bench
