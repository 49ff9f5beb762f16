#include "kernels/attention/attention.h"

#include <algorithm>

namespace qc::kernels {

using std::int64_t;

int64_t attention_scores_size(int64_t keys) { return kQueryRows * padded_keys(keys); }

int64_t packed_keys_size(int64_t keys, int64_t d) { return padded_keys(keys) * d; }

void pack_keys(const float* k, int64_t stride, int64_t keys, int64_t d, float* packed) {
  constexpr int64_t kTile = 16;  // both sides of a square tile stay in L1
  for (int64_t first = 0; first < keys; first += kKeyPanel, packed += kKeyPanel * d) {
    const int64_t count = std::min<int64_t>(kKeyPanel, keys - first);
    for (int64_t j = 0; j < count; j += kTile) {
      const int64_t end = std::min(count, j + kTile);
      for (int64_t c = 0; c < d; ++c) {
        for (int64_t i = j; i < end; ++i) packed[c * kKeyPanel + i] = k[(first + i) * stride + c];
      }
    }
    for (int64_t c = 0; c < d && count < kKeyPanel; ++c) {
      std::fill(packed + c * kKeyPanel + count, packed + (c + 1) * kKeyPanel, 0.0f);
    }
  }
}

void rotate(const float* x, const float* cosines, const float* sines, int64_t half, int64_t d,
            float factor, float* y) {
  for (int64_t i = 0; i < half; ++i) {
    y[i] = (x[i] * cosines[i] - x[i + half] * sines[i]) * factor;
    y[i + half] = (x[i + half] * cosines[i] + x[i] * sines[i]) * factor;
  }
  for (int64_t i = 2 * half; i < d; ++i) y[i] = x[i] * factor;
}

}  // namespace qc::kernels
