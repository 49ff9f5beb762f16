#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/linear/linear.h"

namespace qc::kernels {
namespace {

constexpr std::int64_t kRows = 8;  // that share a strip once it is taken apart

// The weights of a strip of a panel, all of them int8.
template <int kForm>
void take_apart(const PlaneWeights& w, std::int64_t panel, std::int64_t s,
                int (&weights)[kStrip][kPanel]) {
  using Planes = Planes<kForm>;
  const std::uint8_t* strip = w.codes + (panel * Planes::strips(w.k) + s) * Planes::kStripBytes;
  for (int k = 0; k < kStrip; ++k) {
    const std::int64_t group = std::min((s * kStrip + k) / w.group_size, w.group_count() - 1);
    for (int c = 0; c < kPanel; ++c) {
      int weight = Planes::at(strip, k, c);
      if constexpr (Planes::kGrouped) {
        const int byte = w.groups[(panel * w.group_count() + group) * kPanel + c];
        weight = Planes::number(weight, w.levels) - Planes::zero_point(byte, w.levels);
        weight = static_cast<std::int8_t>(weight * Planes::multiple(byte));
      }
      weights[k][c] = weight;
    }
  }
}

// Some rows and one panel, over all of K.
template <int kForm>
void add_strips(const QuantizedRows& q, const PlaneWeights& w, std::int64_t row, std::int64_t rows,
                std::int64_t panel, std::int32_t (&sums)[kRows][kPanel]) {
  for (std::int64_t s = 0; s < Planes<kForm>::strips(w.k); ++s) {
    int weights[kStrip][kPanel];
    take_apart<kForm>(w, panel, s, weights);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int8_t* codes = q.codes + (row + r) * q.stride + s * kStrip;
      for (int k = 0; k < kStrip; ++k) {
        for (int c = 0; c < kPanel; ++c) sums[r][c] += codes[k] * weights[k][c];
      }
    }
  }
}

float value_at(const float* values, std::int64_t index) {
  float value;  // which may lie unaligned
  std::memcpy(&value, values + index, sizeof value);
  return value;
}

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  for (std::int64_t panel = t.panel_begin; panel < t.panel_end; ++panel) {
    for (std::int64_t row = t.row_begin; row < t.row_end; row += kRows) {
      const std::int64_t rows = std::min(kRows, t.row_end - row);
      std::int32_t sums[kRows][kPanel] = {};
      add_strips<kForm>(q, w, row, rows, panel, sums);
      for (std::int64_t r = 0; r < rows; ++r) {
        float* out =
            t.out + (row + r - t.row_begin) * t.out_stride + (panel - t.panel_begin) * kPanel;
        for (int c = 0; c < kPanel && panel * kPanel + c < t.column_end; ++c) {
          const std::int64_t column = panel * kPanel + c;
          const float bias = w.bias != nullptr ? value_at(w.bias, column) : 0.0f;
          const float scaled = static_cast<float>(sums[r][c]) * value_at(w.scales, column);
          out[c] = scaled * q.scales[row + r] + bias;
        }
      }
    }
  }
}

}  // namespace

QC_EACH_FORM(QC_DEFINE_LINEAR, reference)

}  // namespace qc::kernels
