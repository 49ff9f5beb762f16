// Integer matrix product of quantized activations and packed weights.
//
//   y[m, n] = sum over groups g of  xs[m, g] * ws[g, n] * dot[m, g, n]  +  bias[n]
//   dot[m, g, n] = sum over k in g of  q[m, k] * (code[k, n] - zp[g, n])        (exact, int32)
//
// A group holds at most 256 values of k, so |dot| < 2^24: it can't overflow and converts to float
// without rounding. Groups are summed in order of k in float32, whatever the tile: a result depends
// neither on the number of threads nor on the other rows.
#ifndef QC_KERNELS_MATMUL_MATMUL_H_
#define QC_KERNELS_MATMUL_MATMUL_H_

#include <cstdint>

#include "kernels/layout.h"

namespace qc::kernels {

// Rows of quantized activations.
struct Activations {
  const std::int8_t* codes;    // [M, stride], zero from K to the end of the last block
  std::int64_t stride;         // at least K rounded up to kRowMultiple: so much can be read
  const float* scales;         // [M, scale_count]
  std::int64_t scale_count;    // 1 (a scale a row) or the number of groups
  const std::int32_t* starts;  // [M, groups]: group sums of codes, times -1 or -(the zero point)
};

// A packed K x N matrix; see docs/ops.md for the layout. Pointers may be unaligned.
struct Weights {
  const std::uint8_t* codes;        // [panels, blocks, kBlockBytes]
  const std::uint16_t* scales;      // float16 [panels, groups, kPanel]
  const std::uint8_t* zero_points;  // same shape, or null: in that case `starts` includes them
  std::uint8_t zero_point;          // of all weights, where `zero_points` is null
  const float* bias;                // [N], or null
  std::int64_t k, n, group_size;

  QC_INLINE std::int64_t groups() const { return ceil_div(k, group_size); }
  QC_INLINE std::int64_t panels() const { return ceil_div(n, kPanel); }
};

// A rectangle of the result: rows [row_begin, row_end) and panels [panel_begin, panel_end), written
// to out[(row - row_begin) * out_stride + column - 16 * panel_begin] for columns < column_end.
struct Tile {
  std::int64_t row_begin, row_end;
  std::int64_t panel_begin, panel_end;
  std::int64_t column_end;
  float* out;
  std::int64_t out_stride;
};

using MatMul = void (*)(const Activations&, const Weights&, const Tile&);

// matmul_s8_u<bits>_f32_<isa>
#define QC_DECLARE_MATMUL(bits, symbol) \
  void matmul_s8_u##bits##_f32_##symbol(const Activations&, const Weights&, const Tile&);
#define QC_ISA(name, symbol, ...) QC_EACH_WIDTH(QC_DECLARE_MATMUL, symbol)
#include "kernels/dispatch/isas.inc"
#undef QC_DECLARE_MATMUL

// Defines those of an ISA, by its template matmul<bits>.
#define QC_DEFINE_MATMUL(bits, symbol)                                                           \
  void matmul_s8_u##bits##_f32_##symbol(const Activations& a, const Weights& w, const Tile& t) { \
    matmul<bits>(a, w, t);                                                                       \
  }

}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_MATMUL_H_
