#include "kernels/linear/linear_neon.h"

namespace qc::kernels {
namespace {

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t) {
  any_rows<Sdot, kForm>(q, w, t);
}

}  // namespace

QC_EACH_FORM(QC_DEFINE_LINEAR, neondotprod)

}  // namespace qc::kernels
