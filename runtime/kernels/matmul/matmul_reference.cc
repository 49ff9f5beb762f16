#include <cstdint>
#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

// The code of value `i` of a block, for column `c` of its panel.
template <int kBits>
int code_at(const std::uint8_t* block, int c, int i) {
  const std::uint8_t* quad = block + 4 * c;
  if (kBits == 8) return quad[i];
  return i < 4 ? quad[i] & 15 : quad[i - 4] >> 4;
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  constexpr int kDepth = 32 / kBits;
  const std::int64_t blocks = (w.k + kDepth - 1) / kDepth;
  const std::int64_t blocks_per_group = w.group_size / kDepth;
  const std::int64_t groups = w.groups();
  for (std::int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    const std::uint8_t* codes = w.codes + panel * blocks * kBlockBytes;
    for (std::int64_t row = t.row_begin; row < t.row_end; ++row) {
      const std::int8_t* q = a.codes + row * a.stride;
      float sums[kPanel] = {};
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int32_t start = a.starts[row * groups + g];
        std::int32_t dots[kPanel];
        for (int c = 0; c < kPanel; ++c) {
          const std::int64_t at = (panel * groups + g) * kPanel + c;
          dots[c] = w.zero_points != nullptr ? start * w.zero_points[at] : start;
        }
        const std::int64_t first = g * blocks_per_group;
        const std::int64_t last =
            first + blocks_per_group < blocks ? first + blocks_per_group : blocks;
        for (std::int64_t b = first; b < last; ++b) {
          for (int c = 0; c < kPanel; ++c) {
            for (int i = 0; i < kDepth; ++i) {
              dots[c] += q[b * kDepth + i] * code_at<kBits>(codes + b * kBlockBytes, c, i);
            }
          }
        }
        const float x_scale = a.scale_count == 1 ? 1.0f : a.scales[row * a.scale_count + g];
        for (int c = 0; c < kPanel; ++c) {
          std::uint16_t half;
          std::memcpy(&half, w.scales + (panel * groups + g) * kPanel + c, sizeof half);
          sums[c] += x_scale * float_from_half(half) * static_cast<float>(dots[c]);
        }
      }
      const float row_scale = a.scale_count == 1 ? a.scales[row] : 1.0f;
      float* out = t.out + (row - t.row_begin) * t.out_stride + (panel - t.panel_begin) * kPanel;
      for (int c = 0; c < kPanel && panel * kPanel + c < t.column_end; ++c) {
        float bias = 0.0f;
        if (w.bias != nullptr) std::memcpy(&bias, w.bias + panel * kPanel + c, sizeof bias);
        out[c] = sums[c] * row_scale + bias;
      }
    }
  }
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_MATMUL, reference)

}  // namespace qc::kernels
