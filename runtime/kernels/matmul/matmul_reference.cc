#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

// The integer sums of group `g` of a row and a panel.
template <int kBits>
void dot(const Weights& w, std::int64_t panel, std::int64_t g, const std::int8_t* q,
         std::int32_t start, std::int32_t (&dots)[kPanel]) {
  using Codes = Codes<kBits>;
  const std::int64_t blocks = Codes::blocks(w.k);
  const std::int64_t per_group = w.group_size / Codes::kDepth;
  const std::int64_t end = std::min(blocks, (g + 1) * per_group);
  for (int c = 0; c < kPanel; ++c) {
    const std::int64_t at = (panel * w.groups() + g) * kPanel + c;
    dots[c] = w.zero_points != nullptr ? start * w.zero_points[at] : start;
  }
  for (std::int64_t b = g * per_group; b < end; ++b) {
    const std::uint8_t* block = w.codes + (panel * blocks + b) * kBlockBytes;
    for (int c = 0; c < kPanel; ++c) {
      for (int i = 0; i < Codes::kDepth; ++i) {
        dots[c] += q[b * Codes::kDepth + i] * Codes::at(block + c * kQuad, i);
      }
    }
  }
}

// One row and one panel, over all of K.
template <int kBits>
void add_groups(const Activations& a, const Weights& w, std::int64_t row, std::int64_t panel,
                float (&sums)[kPanel]) {
  const std::int64_t groups = w.groups();
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int32_t dots[kPanel];
    dot<kBits>(w, panel, g, a.codes + row * a.stride, a.starts[row * groups + g], dots);
    const float x_scale = a.scale_count == 1 ? 1.0f : a.scales[row * a.scale_count + g];
    for (int c = 0; c < kPanel; ++c) {
      std::uint16_t half;
      std::memcpy(&half, w.scales + (panel * groups + g) * kPanel + c, sizeof half);
      sums[c] += x_scale * float_from_half(half) * static_cast<float>(dots[c]);
    }
  }
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t) {
  for (std::int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    for (std::int64_t row = t.row_begin; row < t.row_end; ++row) {
      float sums[kPanel] = {};
      add_groups<kBits>(a, w, row, panel, sums);
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
