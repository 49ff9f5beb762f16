// Quantized activations in scratch memory, in the order in which the products read them.
#ifndef QC_CUDA_ACTIVATIONS_H_
#define QC_CUDA_ACTIVATIONS_H_

#include <cstdint>

#include "cuda/elements.h"

namespace qc::cuda {

struct Activations {
  std::int8_t* codes;    // [ceil(k / 32), padded, 32]: the 32 codes of a token side by side, in
                         // the order of k, or (`fours_apart`) first the even fours of them
  float* scales;         // [groups or 1, padded]
  std::int32_t* starts;  // [groups, padded]: group sums of codes, times -1 or -(one zero point);
                         // null: nobody reads them
  std::int64_t padded;   // tokens; those beyond `rows` are zeros
  std::int32_t fours_apart;
};

// Rows [first, first + rows) of X.
struct QuantizeJob {
  const void* x;
  std::int64_t first, rows, k, group_size;
  std::int64_t block;  // k or group_size
  Element element;
  float static_scale;              // 0: computed
  const std::uint8_t* zero_point;  // of all weights; null: a factor of -1 for `starts`
  Activations to;
};

// The kernel behind it may overlap its end. kernels/quantize/quantize.h states the formula; the
// codes and scales are the same bits.
void quantize(const QuantizeJob& job, void* stream);

}  // namespace qc::cuda

#endif  // QC_CUDA_ACTIVATIONS_H_
