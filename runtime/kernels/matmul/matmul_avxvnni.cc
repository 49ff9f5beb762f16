// The VEX form: CPUs with AVX-VNNI and no AVX-512.
#include "kernels/matmul/matmul_vnni256.h"

namespace qc::kernels {

void matmul_s8_u4_f32_avxvnni(const Activations& a, const Weights& w, const Tile& t) {
  matmul<4>(a, w, t);
}

void matmul_s8_u8_f32_avxvnni(const Activations& a, const Weights& w, const Tile& t) {
  matmul<8>(a, w, t);
}

}  // namespace qc::kernels
