// One column of a packed matrix, dequantized: out[k] = (code[k] - zp[g]) * scale[g].
#ifndef QC_KERNELS_GATHER_GATHER_H_
#define QC_KERNELS_GATHER_GATHER_H_

#include <cstdint>

namespace qc::kernels {

struct PackedTable {
  int bits;                         // a width of the layout
  const std::uint8_t* codes;        // [panels, blocks, kBlockBytes]
  const std::uint16_t* scales;      // float16 [panels, groups, kPanel]
  const std::uint8_t* zero_points;  // same shape, or null: all are `zero_point`
  std::uint8_t zero_point;
  std::int64_t k, n, group_size;
};

// `column` must lie in [0, n); out holds k floats. Bound by memory, so plain C++ serves all ISAs.
void gather_f32(const PackedTable& table, std::int64_t column, float* out);

}  // namespace qc::kernels

#endif  // QC_KERNELS_GATHER_GATHER_H_
