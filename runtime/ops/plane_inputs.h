// The inputs that hold a packed matrix: W, groups (but not of 8 bits) and scales.
#ifndef QC_OPS_PLANE_INPUTS_H_
#define QC_OPS_PLANE_INPUTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/linear/linear.h"
#include "ops/matrix_attributes.h"
#include "ops/op.h"

namespace qc::ops {

// Weights are almost always constants: those are checked once, when the kernel is created. Any
// other tensor is checked at each run.
class PlaneInputs {
 public:
  // W is input `first`, the others follow.
  PlaneInputs(const OrtApi* api, const Node& node, const MatrixAttributes& matrix, int form,
              std::size_t first);

  static std::vector<int> types(int form);

  // Without a bias.
  kernels::PlaneWeights read(const OrtKernelContext* context) const;

 private:
  struct Tensor {
    const char* name;
    Shape shape;
    bool checked;  // constant, checked at creation
  };
  static std::vector<Tensor> tensors_of(const MatrixAttributes& matrix, int form);
  void check_shape(const Tensor& tensor, const OrtValue* value) const;

  const OrtApi* api_;
  std::string label_;
  MatrixAttributes matrix_;
  int form_;
  std::size_t first_;
  std::vector<Tensor> tensors_;
};

}  // namespace qc::ops

#endif  // QC_OPS_PLANE_INPUTS_H_
