// From integer sums to results. Internal linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_FINISH_H_
#define QC_KERNELS_LINEAR_FINISH_H_

#include <cstdint>

#include "kernels/linear/linear.h"

namespace qc::kernels {
namespace {

// Writes the sums of a row and the columns of one register that begin at `column`, but for those
// from column_end on.
template <typename Lanes>
QC_INLINE void finish(const QuantizedRows& q, const PlaneWeights& w, const Tile& t,
                      std::int64_t row, std::int64_t column, typename Lanes::Ints sums) {
  const std::int64_t left = t.column_end - column;
  if (left <= 0) return;
  const auto scaled = Lanes::mul(Lanes::to_floats(sums), Lanes::load(w.scales + column, left));
  const auto bias = w.bias != nullptr ? Lanes::load(w.bias + column, left) : Lanes::zero();
  float* out = t.out + (row - t.row_begin) * t.out_stride + column - t.panel_begin * kPanel;
  Lanes::store(out, left, Lanes::add(Lanes::mul(scaled, Lanes::set(q.scales[row])), bias));
}

// The sum of all codes of a row.
QC_INLINE std::int32_t row_sum(const QuantizedRows& q, const PlaneWeights& w, std::int64_t row) {
  const std::int64_t groups = w.group_count();
  std::int32_t sum = 0;
  for (std::int64_t g = 0; g < groups; ++g) sum += q.sums[row * groups + g];
  return sum;
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_FINISH_H_
