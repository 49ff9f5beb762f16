// Attention of query rows over the keys and values of one head, in float32.
//
//   p[r, j] = softmax over the j that row r sees of  cap(q[r] . k[j]) + mask[r, j]
//   out[r]  = sum over j of  p[r, j] * v[j]
//
// All rows see all keys; or, where causal, the last row does, the one before all but one, and so
// on; of these only the last `window`. Sums run in order of j and of the channels, whatever other
// rows there are. No key or value before a panel with a key that a row sees is read.
#ifndef QC_KERNELS_ATTENTION_ATTENTION_H_
#define QC_KERNELS_ATTENTION_ATTENTION_H_

#include <cstdint>
#include <limits>

#include "kernels/inline.h"

namespace qc::kernels {

inline constexpr int kHeadStep = 16;  // a head's channels are a multiple of this
inline constexpr int kKeyPanel = 64;  // keys that lie side by side when packed
inline constexpr int kQueryRows = 6;  // rows that share a pass over keys and values
// So few rows read the keys as they lie; more are worth packing them for.
inline constexpr int kUnpackedRows = 2;

// Keys up to whole panels.
QC_INLINE std::int64_t padded_keys(std::int64_t keys) {
  return ceil_div(keys, kKeyPanel) * kKeyPanel;
}

inline constexpr std::int64_t kNoWindow = std::numeric_limits<std::int64_t>::max();
inline constexpr float kNoSink = -std::numeric_limits<float>::infinity();

struct AttentionRows {
  const float* q;  // [rows, q_stride], times the scale
  std::int64_t q_stride;
  std::int64_t rows, keys;
  bool causal;
  const float* k;         // [keys, d]; read for kUnpackedRows or fewer
  const float* packed_k;  // what `pack_keys` wrote; read for more rows
  const float* v;         // [keys, d]
  std::int64_t d;
  float* scores;  // [attention_scores_size(keys)], scratch
  float* out;     // [rows, out_stride]
  std::int64_t out_stride;
  const float* mask;  // [rows, mask_stride], or null
  std::int64_t mask_stride;
  bool nan_is_zero;                 // rows whose softmax is NaN give zeros, not NaN
  std::int64_t window = kNoWindow;  // 1 or more
  float softcap = 0.0f;             // cap(s) = softcap * tanh(s / softcap); 0: none
  float sink = kNoSink;             // one more score in the softmax, of a value of zeros

  QC_INLINE std::int64_t seen(std::int64_t row) const {
    return causal ? keys - rows + row + 1 : keys;
  }
  // The first key that a row sees.
  QC_INLINE std::int64_t first_seen(std::int64_t row) const {
    const std::int64_t end = seen(row);
    return end > window ? end - window : 0;
  }
};

using Attend = void (*)(const AttentionRows&);

#define QC_SIMD(architecture, simd, ...) void attend_f32_##simd(const AttentionRows&);
#include "kernels/dispatch/isas.inc"

// Sizes in floats.
std::int64_t packed_keys_size(std::int64_t keys, std::int64_t d);
std::int64_t attention_scores_size(std::int64_t keys);

// [keys, stride] of which d are read -> [ceil(keys / 64), d, 64], zeros beyond the last key.
void pack_keys(const float* k, std::int64_t stride, std::int64_t keys, std::int64_t d,
               float* packed);

// Rotary embedding of the first 2 * half channels, halves apart (not interleaved), times `factor`:
//   y[i] = x[i] * cos[i] - x[i + half] * sin[i],   y[i + half] = x[i + half] * cos[i] + x[i] *
//   sin[i]
// The other channels are only multiplied. `x` and `y` don't overlap.
void rotate(const float* x, const float* cosines, const float* sines, std::int64_t half,
            std::int64_t d, float factor, float* y);

}  // namespace qc::kernels

#endif  // QC_KERNELS_ATTENTION_ATTENTION_H_
