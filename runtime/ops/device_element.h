// ONNX Runtime's types of elements as the kernels of a GPU take them.
#ifndef QC_OPS_DEVICE_ELEMENT_H_
#define QC_OPS_DEVICE_ELEMENT_H_

#include "cuda/elements.h"
#include "ops/op.h"

namespace qc::ops {

inline cuda::Element element_of(int type) {
  return type == abi::kFloat     ? cuda::Element::kFloat32
         : type == abi::kFloat16 ? cuda::Element::kFloat16
                                 : cuda::Element::kBfloat16;
}

}  // namespace qc::ops

#endif  // QC_OPS_DEVICE_ELEMENT_H_
