#include "bench/probe.h"
#include "bench/probe_neon.h"

namespace qc::bench {

double peak_loop_neoni8mm(std::int64_t repeats) {
  return peak_loop_neon(repeats, 32, [](int32x4_t& sum, int8x16_t a, int8x16_t b) {
    __asm__ volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  });
}

}  // namespace qc::bench
