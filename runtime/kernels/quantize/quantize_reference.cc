#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/inline.h"
#include "kernels/quantize/quantize.h"

namespace qc::kernels {
namespace {

float dynamic_scale(const float* x, std::int64_t count) {
  float peak = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (magnitude > peak) peak = magnitude;
  }
  const float scale = peak / 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

std::int8_t code_of(float x, float scale) {
  float q = x / scale;
  q = q > 127.0f ? 127.0f : q;
  q = q < -127.0f ? -127.0f : q;
  return static_cast<std::int8_t>(std::nearbyint(q));
}

bool is_finite(const float* x, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return false;
  }
  return true;
}

}  // namespace

void quantize_f32_s8_reference(const QuantizeRow& row) {
  const std::int64_t groups = ceil_div(row.k, row.group_size);
  std::memset(row.codes, 0, static_cast<std::size_t>(row.padded_k));
  std::memset(row.sums, 0, static_cast<std::size_t>(groups) * sizeof(std::int32_t));
  if (!is_finite(row.x, row.k)) {
    *row.scale = std::nanf("");
    return;
  }
  *row.scale = row.static_scale != 0.0f ? row.static_scale : dynamic_scale(row.x, row.k);
  for (std::int64_t i = 0; i < row.k; ++i) {
    row.codes[i] = code_of(row.x[i], *row.scale);
    row.sums[i / row.group_size] += row.codes[i];
  }
}

}  // namespace qc::kernels
