// The three inputs that hold a matrix of layout 1: W, scales and zero_points.
#ifndef QC_OPS_PACKED_INPUTS_H_
#define QC_OPS_PACKED_INPUTS_H_

#include <cstdint>
#include <string>

#include "ops/matrix_attributes.h"
#include "ops/op.h"

namespace qc::ops {

// Weights are almost always constants: those are checked once, when the kernel is created. Any
// other tensor is checked at each run.
class PackedInputs {
 public:
  // The inputs are W = `first`, scales and zero_points after it. `bits`: a width of the layout.
  PackedInputs(const OrtApi* api, const Node& node, const MatrixAttributes& matrix, int bits,
               std::size_t first);

  struct Pointers {
    const std::uint8_t* codes;
    const std::uint16_t* scales;
    const std::uint8_t* zero_points;
    bool one_zero_point;  // one value serves all
  };
  Pointers read(const OrtKernelContext* context) const;

 private:
  enum Which { kCodes, kScales, kZeroPoints, kCount };

  void check_shape(int which, const Shape& shape) const;

  const OrtApi* api_;
  std::string label_;
  MatrixAttributes matrix_;
  int bits_;
  std::size_t first_;
  bool constant_[kCount] = {};
  bool one_zero_point_ = false;  // meaningful where zero_points is constant
};

}  // namespace qc::ops

#endif  // QC_OPS_PACKED_INPUTS_H_
