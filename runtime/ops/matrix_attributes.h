// The attributes of a node with packed weights.
#ifndef QC_OPS_MATRIX_ATTRIBUTES_H_
#define QC_OPS_MATRIX_ATTRIBUTES_H_

#include <cstdint>

#include "kernels/planes.h"
#include "ops/op.h"

namespace qc::ops {

// K, N, group_size and levels, checked, and small enough that no size computed from them overflows.
struct MatrixAttributes {
  std::int64_t k, n, group_size;
  kernels::Levels levels;  // of the forms that have them

  std::int64_t groups() const { return kernels::ceil_div(k, group_size); }
  std::int64_t panels() const { return kernels::ceil_div(n, kernels::kPanel); }
};

// Of 8 bits there are no groups: group_size is K.
MatrixAttributes read_matrix(const Node& node, int form);

}  // namespace qc::ops

#endif  // QC_OPS_MATRIX_ATTRIBUTES_H_
