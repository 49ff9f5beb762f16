#include "kernels/gather/gather.h"

#include <cstdint>
#include <cstring>

#include "kernels/convert/convert.h"

namespace qc::kernels {

void gather_u8_f32(const PackedTable& table, std::int64_t column, float* out) {
  constexpr std::int64_t kPanel = 16;
  constexpr std::int64_t kQuad = 4;
  const std::int64_t panel = column / kPanel;
  const std::int64_t lane = column % kPanel;
  const std::int64_t blocks = (table.k + kQuad - 1) / kQuad;
  const std::int64_t groups = (table.k + table.group_size - 1) / table.group_size;
  const std::uint8_t* quads = table.codes + (panel * blocks * kPanel + lane) * kQuad;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t at = (panel * groups + g) * kPanel + lane;
    std::uint16_t half;
    std::memcpy(&half, table.scales + at, sizeof half);
    const float scale = float_from_half(half);
    const int zero = table.zero_points != nullptr ? table.zero_points[at] : table.zero_point;
    const std::int64_t first = g * table.group_size;
    const std::int64_t end =
        first + table.group_size < table.k ? first + table.group_size : table.k;
    for (std::int64_t i = first; i < end; ++i) {
      const int code = quads[i / kQuad * kPanel * kQuad + i % kQuad];
      out[i] = static_cast<float>(code - zero) * scale;
    }
  }
}

}  // namespace qc::kernels
