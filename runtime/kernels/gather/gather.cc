#include "kernels/gather/gather.h"

#include <cstdint>
#include <cstring>

#include "kernels/convert/convert.h"

namespace qc::kernels {
namespace {

constexpr std::int64_t kPanel = 16;
constexpr std::int64_t kQuad = 4;

// Codes of one column, in order of k: the nibbles of a byte are kQuad apart.
template <int kBits>
class Column {
 public:
  explicit Column(const std::uint8_t* first) : first_(first) {}

  int operator[](std::int64_t k) const {
    constexpr std::int64_t kDepth = 32 / kBits;
    const std::int64_t in_block = k % kDepth;
    const int byte = first_[k / kDepth * kPanel * kQuad + in_block % kQuad];
    if constexpr (kBits == 8) return byte;
    return in_block < kQuad ? byte & 15 : byte >> 4;
  }

 private:
  const std::uint8_t* first_;
};

template <int kBits>
void gather(const PackedTable& table, std::int64_t column, float* out) {
  const std::int64_t panel = column / kPanel;
  const std::int64_t lane = column % kPanel;
  constexpr std::int64_t kDepth = 32 / kBits;
  const std::int64_t blocks = (table.k + kDepth - 1) / kDepth;
  const std::int64_t groups = (table.k + table.group_size - 1) / table.group_size;
  const Column<kBits> codes(table.codes + (panel * blocks * kPanel + lane) * kQuad);
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
      out[i] = static_cast<float>(codes[i] - zero) * scale;
    }
  }
}

}  // namespace

void gather_f32(const PackedTable& table, std::int64_t column, float* out) {
  table.bits == 4 ? gather<4>(table, column, out) : gather<8>(table, column, out);
}

}  // namespace qc::kernels
