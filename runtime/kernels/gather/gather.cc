#include "kernels/gather/gather.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/layout.h"

namespace qc::kernels {
namespace {

template <typename Codes>
void gather(const PackedTable& table, std::int64_t column, float* out) {
  const std::int64_t panel = column / kPanel;
  const std::int64_t lane = column % kPanel;
  const std::int64_t groups = ceil_div(table.k, table.group_size);
  const std::uint8_t* dword =
      table.codes + panel * Codes::blocks(table.k) * kBlockBytes + lane * kQuad;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t at = (panel * groups + g) * kPanel + lane;
    std::uint16_t half;
    std::memcpy(&half, table.scales + at, sizeof half);
    const float scale = float_from_half(half);
    const int zero = table.zero_points != nullptr ? table.zero_points[at] : table.zero_point;
    const std::int64_t end = std::min(table.k, (g + 1) * table.group_size);
    for (std::int64_t k = g * table.group_size; k < end; k += Codes::kDepth) {
      const int count = static_cast<int>(std::min<std::int64_t>(Codes::kDepth, end - k));
      for (int i = 0; i < count; ++i) {
        out[k + i] = static_cast<float>(Codes::at(dword, i) - zero) * scale;
      }
      dword += kBlockBytes;
    }
  }
}

}  // namespace

void gather_f32(const PackedTable& table, std::int64_t column, float* out) {
  with_width(table.bits, [&](auto codes) { gather<decltype(codes)>(table, column, out); });
}

}  // namespace qc::kernels
