#include <immintrin.h>

#include "bench/probe.h"

namespace qc::bench {

// A product of bytes and the 16-bit addition that every one of them needs.
double peak_loop_avx2(std::int64_t repeats) {
  constexpr int kSums = 12;
  constexpr int kMultiplyAdds = 32;
  __m256i sums[kSums] = {};
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(1);
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) {
      __m256i product;
      __asm__ volatile(
          "vpmaddubsw %3, %2, %1\n\t"
          "vpaddw %1, %0, %0"
          : "+x"(sums[s]), "=&x"(product)
          : "x"(a), "x"(b));
    }
  }
  return static_cast<double>(repeats) * kSums * kMultiplyAdds;
}

}  // namespace qc::bench
