// One product of activations and a packed matrix over the session's threads: rows are quantized,
// tiles given to a kernel, results narrowed and put where they belong.
#ifndef QC_OPS_TILED_PRODUCT_H_
#define QC_OPS_TILED_PRODUCT_H_

#include <array>
#include <cstdint>
#include <functional>

#include "kernels/dispatch/dispatch.h"
#include "ops/layer_tensors.h"
#include "ops/op.h"

namespace qc::ops {

// Rows as table.quantize leaves them.
struct QuantizedChunk {
  const std::int8_t* codes;  // [rows, stride]
  std::int64_t stride;
  const float* scales;  // [rows, scale_count]
  std::int64_t scale_count;
  const std::int32_t* starts;  // [rows, groups]
};

struct TiledProduct {
  const kernels::KernelTable* kernels;
  int element_type;  // of x and the outputs
  const void* x;     // [rows, k]
  std::int64_t rows, k, n;
  std::int64_t group_size;        // of the weights
  std::int64_t activation_block;  // k or group_size
  float static_scale;             // 0: dynamic
  std::int32_t start_factor;      // of `starts`, see kernels::QuantizeRow
  std::array<OutputRange, kLayerOutputs> outputs;
  // Computes a tile, whose rows are counted from the chunk's first.
  std::function<void(const QuantizedChunk&, const kernels::Tile&)> multiply;
};

void run(const OrtApi* api, OrtKernelContext* context, const TiledProduct& product);

}  // namespace qc::ops

#endif  // QC_OPS_TILED_PRODUCT_H_
