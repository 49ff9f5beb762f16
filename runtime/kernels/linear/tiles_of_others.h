// The configuration of AMX tiles. Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_TILES_OF_OTHERS_H_
#define QC_KERNELS_LINEAR_TILES_OF_OTHERS_H_

#include <immintrin.h>

#include <cstdint>

namespace qc::kernels {
namespace {

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  std::uint8_t palette = 0, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// GCC takes ldtilecfg and sttilecfg for accesses of 8 bytes, hence the barriers.
inline void load(const TileConfig& config) {
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Registers 0 to 3 hold sums and 4 and 5 activations, of so many rows each; 6 and 7 weights.
inline void configure_tiles(int rows) {
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : 16);
    config.row_bytes[i] = 64;
  }
  load(config);
}

// Leaves the registers to the thread's other users as they had configured them: libraries that do
// so once a thread would fault, or multiply tiles of another size.
class TilesOfOthers {
 public:
  TilesOfOthers() {
    _tile_storeconfig(&config_);
    __asm__ volatile("" : : "r"(&config_) : "memory");
  }
  ~TilesOfOthers() { load(config_); }
  TilesOfOthers(const TilesOfOthers&) = delete;
  TilesOfOthers& operator=(const TilesOfOthers&) = delete;

 private:
  TileConfig config_;
};

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_TILES_OF_OTHERS_H_
