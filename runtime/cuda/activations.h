// Quantized activations in scratch memory, in the order in which the products read them.
#ifndef QC_CUDA_ACTIVATIONS_H_
#define QC_CUDA_ACTIVATIONS_H_

#include <cstdint>

#include "cuda/elements.h"

namespace qc::cuda {

struct Activations {
  std::int8_t* codes;   // [strips, padded, 32]: the codes of a token in a strip side by side
  float* scales;        // [padded]
  std::int64_t padded;  // tokens; those beyond `rows` are zeros
};

// Rows [first, first + rows) of X.
struct QuantizeJob {
  const void* x;
  std::int64_t first, rows, k;
  Element element;
  float static_scale;  // 0: computed
  Activations to;
};

// kernels/quantize/quantize.h states the formula; the codes and scales are the same bits.
void quantize(const QuantizeJob& job, void* stream);

}  // namespace qc::cuda

#endif  // QC_CUDA_ACTIVATIONS_H_
