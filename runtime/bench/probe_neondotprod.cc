#include "bench/probe.h"
#include "bench/probe_neon.h"

namespace qc::bench {

double peak_loop_neondotprod(std::int64_t repeats) {
  return peak_loop_neon(repeats, 16, [](int32x4_t& sum, int8x16_t a, int8x16_t b) {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  });
}

}  // namespace qc::bench
