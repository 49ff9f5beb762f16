#include <immintrin.h>

#include "bench/probe.h"

namespace qc::bench {

double peak_loop_amxint8(std::int64_t repeats) {
  constexpr int kMultiplyAdds = 16 * 16 * 64;
  struct alignas(64) {
    std::uint8_t palette = 1, reserved[15] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC takes it for a read of 8 bytes
  _tile_loadconfig(&config);
  for (std::int64_t i = 0; i < repeats; ++i) {
    _tile_dpbsud(0, 4, 5);
    _tile_dpbsud(1, 4, 5);
    _tile_dpbsud(2, 4, 5);
    _tile_dpbsud(3, 4, 5);
  }
  _tile_release();
  return static_cast<double>(repeats) * 4 * kMultiplyAdds;
}

}  // namespace qc::bench
