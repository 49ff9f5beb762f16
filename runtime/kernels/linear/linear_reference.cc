#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/linear/linear.h"

namespace qc::kernels {
namespace {

// One row and one panel.
template <int kBits>
void add_strips(const std::int8_t* q, const PlaneWeights& w, std::int64_t panel,
                std::int32_t (&sums)[kPanel]) {
  using Planes = Planes<kBits>;
  const std::int64_t strips = Planes::strips(w.k);
  for (std::int64_t k = 0; k < w.k; ++k) {
    const std::uint8_t* strip = w.codes + (panel * strips + k / kStrip) * Planes::kStripBytes;
    for (int c = 0; c < kPanel; ++c) {
      int weight = Planes::at(strip, static_cast<int>(k % kStrip), c);
      if constexpr (Planes::kGrouped) {
        const std::int64_t group = panel * w.group_count() + k / w.group_size;
        const int byte = w.groups[group * kPanel + c];
        weight =
            static_cast<std::int8_t>((weight - Planes::zero_point(byte)) * Planes::multiple(byte));
      }
      sums[c] += q[k] * weight;
    }
  }
}

float value_at(const float* values, std::int64_t index) {
  float value;  // which may lie unaligned
  std::memcpy(&value, values + index, sizeof value);
  return value;
}

template <int kBits>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  for (std::int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    for (std::int64_t row = t.row_begin; row < t.row_end; ++row) {
      std::int32_t sums[kPanel] = {};
      add_strips<kBits>(q.codes + row * q.stride, w, panel, sums);
      float* out = t.out + (row - t.row_begin) * t.out_stride + (panel - t.panel_begin) * kPanel;
      for (int c = 0; c < kPanel && panel * kPanel + c < t.column_end; ++c) {
        const std::int64_t column = panel * kPanel + c;
        const float bias = w.bias != nullptr ? value_at(w.bias, column) : 0.0f;
        out[c] = static_cast<float>(sums[c]) * value_at(w.scales, column) * q.scales[row] + bias;
      }
    }
  }
}

}  // namespace

QC_EACH_LINEAR_WIDTH(QC_DEFINE_LINEAR, reference)

}  // namespace qc::kernels
