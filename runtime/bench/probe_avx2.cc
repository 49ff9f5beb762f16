#include <immintrin.h>

#include "bench/probe.h"
#include "bench/probe_loop.h"

namespace qc::bench {

// A product of bytes and the 16-bit addition that every one of them needs.
double peak_loop_avx2(std::int64_t repeats) {
  const auto step = [](__m256i& sum, __m256i a, __m256i b) {
    __m256i product;
    __asm__ volatile(
        "vpmaddubsw %3, %2, %1\n\t"
        "vpaddw %1, %0, %0"
        : "+x"(sum), "=&x"(product)
        : "x"(a), "x"(b));
  };
  return peak_loop<12>(repeats, 32, _mm256_setzero_si256(), _mm256_set1_epi8(3),
                       _mm256_set1_epi8(1), step);
}

}  // namespace qc::bench
