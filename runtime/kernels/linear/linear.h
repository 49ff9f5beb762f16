// Integer matrix product of quantized activations and weights that are int8 inside.
//
//   y[m, n] = float(sum over k of q[m, k] * w[k, n]) * ws[n] * xs[m] + bias[n]
//
// The sum is an exact int32 over the whole of K, and the float32 operations are rounded one by one
// in the order written here. So a result is the same bits on every ISA, for any tile, number of
// threads and other rows.
#ifndef QC_KERNELS_LINEAR_LINEAR_H_
#define QC_KERNELS_LINEAR_LINEAR_H_

#include <cstdint>

#include "kernels/planes.h"

namespace qc::kernels {

// Rows of quantized activations can be read up to a multiple of this many codes.
inline constexpr std::int64_t kRowMultiple = 64;

// Codes in a row of them: a line more than K needs, since rows a multiple of 4096 bytes apart would
// fall on the same cache sets.
QC_INLINE constexpr std::int64_t row_stride(std::int64_t k) {
  return ceil_div(k, kRowMultiple) * kRowMultiple + kRowMultiple;
}

// Rows of quantized activations.
struct QuantizedRows {
  const std::int8_t* codes;  // [M, stride], -127 .. 127; zero from K to the end of its last strip
  std::int64_t stride;       // at least K rounded up to kRowMultiple: so much can be read
  const float* scales;       // [M]
  const std::int32_t* sums;  // [M, groups]: of the codes of each group
};

// A packed K x N matrix; see docs/ops.md for the layout. Pointers may be unaligned.
struct PlaneWeights {
  const std::uint8_t* codes;   // [panels, strips, bits * kBlockBytes]
  const std::uint8_t* groups;  // [panels, groups, kPanel]; null for 8 bits
  const float* scales;         // [N]
  const float* bias;           // [N], or null
  std::int64_t k, n;
  std::int64_t group_size;  // k for 8 bits
  Levels levels;            // of the forms that have them

  QC_INLINE std::int64_t group_count() const { return ceil_div(k, group_size); }
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

using Linear = void (*)(const QuantizedRows&, const PlaneWeights&, const Tile&);

// linear_s8_<form>_f32_<isa>
#define QC_DECLARE_LINEAR(letter, bits, symbol)                                           \
  void linear_s8_##letter##bits##_f32_##symbol(const QuantizedRows&, const PlaneWeights&, \
                                               const Tile&);
#define QC_ISA(name, symbol, ...) QC_EACH_FORM(QC_DECLARE_LINEAR, symbol)
#include "kernels/dispatch/isas.inc"
#undef QC_DECLARE_LINEAR

// Defines those of an ISA, by its template linear<form>.
#define QC_DEFINE_LINEAR(letter, bits, symbol)                                                \
  void linear_s8_##letter##bits##_f32_##symbol(const QuantizedRows& q, const PlaneWeights& w, \
                                               const Tile& t) {                               \
    linear<kForm##letter + bits>(q, w, t);                                                    \
  }

}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_LINEAR_H_
