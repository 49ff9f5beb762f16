#include <cmath>

#include "kernels/norm/norm.h"

namespace qc::kernels {

void add_norm_f32_reference(const NormRow& row) {
  const float n = static_cast<float>(row.n);
  float total = 0.0f;
  for (std::int64_t i = 0; i < row.n; ++i) {
    row.sum[i] = row.x[i] + row.skip[i];
    total += row.sum[i];
  }
  const float mean = row.bias != nullptr ? total / n : 0.0f;
  float squares = 0.0f;
  for (std::int64_t i = 0; i < row.n; ++i) {
    const float centered = row.sum[i] - mean;
    squares += centered * centered;
  }
  const float factor = 1.0f / std::sqrt(squares / n + row.epsilon);
  for (std::int64_t i = 0; i < row.n; ++i) {
    const float scaled = (row.sum[i] - mean) * factor * row.weight[i];
    row.y[i] = row.bias != nullptr ? scaled + row.bias[i] : scaled;
  }
}

}  // namespace qc::kernels
