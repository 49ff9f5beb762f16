#include "kernels/linear/linear_neon.h"

namespace qc::kernels {
namespace {

template <int kBits>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  any_rows<Sdot, kBits>(q, w, t);
}

}  // namespace

QC_EACH_WIDTH(QC_DEFINE_LINEAR, neondotprod)

}  // namespace qc::kernels
