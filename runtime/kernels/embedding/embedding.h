// One column of a packed matrix, dequantized: out[k] = w[k] * scale, rounded once.
#ifndef QC_KERNELS_EMBEDDING_EMBEDDING_H_
#define QC_KERNELS_EMBEDDING_EMBEDDING_H_

#include <cstdint>

#include "kernels/linear/linear.h"

namespace qc::kernels {

// `form`: of the weights. `column` must lie in [0, n); out holds k floats. Bound by
// memory, so plain C++ serves all ISAs.
void embedding_f32(int form, const PlaneWeights& w, std::int64_t column, float* out);

}  // namespace qc::kernels

#endif  // QC_KERNELS_EMBEDDING_EMBEDDING_H_
