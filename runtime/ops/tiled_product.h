// One product of activations and a packed matrix over the session's threads: rows are quantized,
// tiles given to a kernel, results narrowed and put where they belong.
#ifndef QC_OPS_TILED_PRODUCT_H_
#define QC_OPS_TILED_PRODUCT_H_

#include <array>
#include <cstdint>

#include "kernels/dispatch/dispatch.h"
#include "ops/layer_tensors.h"
#include "ops/op.h"

namespace qc::ops {

struct TiledProduct {
  const kernels::KernelTable& kernels;
  int element_type;  // of x and the outputs
  const void* x;     // [rows, weights.k]
  std::int64_t rows;
  float static_scale;  // 0: dynamic
  int form;            // of the weights
  kernels::PlaneWeights weights;
  std::array<OutputRange, kLayerOutputs> outputs;
};

void run(const OrtApi* api, OrtKernelContext* context, const TiledProduct& product);

}  // namespace qc::ops

#endif  // QC_OPS_TILED_PRODUCT_H_
