#include "kernels/linear/linear.h"

namespace qc::kernels {

#define QC_DEFINE(bits, ...)                                                          \
  void linear_s8_w##bits##_f32_amxint8(const QuantizedRows& q, const PlaneWeights& w, \
                                       const Tile& t) {                               \
    linear_s8_w##bits##_f32_reference(q, w, t);                                       \
  }
QC_EACH_LINEAR_WIDTH(QC_DEFINE)

}  // namespace qc::kernels
