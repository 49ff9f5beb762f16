#include <arm_neon.h>

#include "bench/probe.h"
#include "bench/probe_loop.h"

namespace qc::bench {

double peak_loop_neoni8mm(std::int64_t repeats) {
  const auto step = [](int32x4_t& sum, int8x16_t a, int8x16_t b) {
    __asm__ volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  };
  return peak_loop<16>(repeats, 32, vdupq_n_s32(0), vdupq_n_s8(3), vdupq_n_s8(1), step);
}

}  // namespace qc::bench
