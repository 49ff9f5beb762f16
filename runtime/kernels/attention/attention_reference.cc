#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"

namespace qc::kernels {

using std::int64_t;

void attend_f32_reference(const AttentionRows& a) {
  const bool packed = a.rows > kUnpackedRows;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* q = a.q + r * a.q_stride;
    float* out = a.out + r * a.out_stride;
    const int64_t first = a.first_seen(r), keys = a.seen(r);
    float peak = a.sink;
    for (int64_t j = first; j < keys; ++j) {
      const float* k =
          packed ? a.packed_k + j / kKeyPanel * kKeyPanel * a.d + j % kKeyPanel : a.k + j * a.d;
      const int64_t step = packed ? kKeyPanel : 1;
      float dot = 0.0f;
      for (int64_t i = 0; i < a.d; ++i) dot += q[i] * k[i * step];
      if (a.softcap != 0.0f) dot = a.softcap * std::tanh(dot / a.softcap);
      if (a.mask != nullptr) dot += a.mask[r * a.mask_stride + j];
      a.scores[j - first] = dot;
      peak = std::max(peak, dot);
    }
    float total = std::exp(a.sink - peak);
    for (int64_t j = 0; j < keys - first; ++j) {
      a.scores[j] = std::exp(a.scores[j] - peak);
      total += a.scores[j];
    }
    const bool nothing = a.nan_is_zero && std::isnan(total);
    std::fill_n(out, a.d, 0.0f);
    for (int64_t j = first; j < keys; ++j) {
      const float weight = nothing ? 0.0f : a.scores[j - first];
      for (int64_t i = 0; i < a.d; ++i) out[i] += weight * a.v[j * a.d + i];
    }
    for (int64_t i = 0; i < a.d; ++i) out[i] /= nothing ? 1.0f : total;
  }
}

}  // namespace qc::kernels
