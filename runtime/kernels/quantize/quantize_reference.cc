#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/inline.h"
#include "kernels/quantize/quantize.h"

namespace qc::kernels {
namespace {

float block_scale(const float* x, std::int64_t count) {
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
  const std::int64_t blocks = ceil_div(row.k, row.block);
  const std::int64_t groups = ceil_div(row.k, row.group_size);
  std::memset(row.codes, 0, static_cast<std::size_t>(row.padded_k));
  std::memset(row.starts, 0, static_cast<std::size_t>(groups) * sizeof(std::int32_t));
  if (!is_finite(row.x, row.k)) {
    for (std::int64_t b = 0; b < blocks; ++b) row.scales[b] = std::nanf("");
    return;
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t first = b * row.block;
    const std::int64_t end = first + row.block < row.k ? first + row.block : row.k;
    const float scale =
        row.static_scale != 0.0f ? row.static_scale : block_scale(row.x + first, end - first);
    row.scales[b] = scale;
    for (std::int64_t i = first; i < end; ++i) {
      row.codes[i] = code_of(row.x[i], scale);
      row.starts[i / row.group_size] += row.start_factor * row.codes[i];
    }
  }
}

}  // namespace qc::kernels
