// The EVEX form: AVX-512 VNNI on 256-bit registers, which are twice as many as the VEX form has.
#include "kernels/matmul/matmul_vnni256.h"

namespace qc::kernels {

void matmul_s8_u4_f32_avx512vnni_256(const Activations& a, const Weights& w, const Tile& t) {
  matmul<4>(a, w, t);
}

void matmul_s8_u8_f32_avx512vnni_256(const Activations& a, const Weights& w, const Tile& t) {
  matmul<8>(a, w, t);
}

}  // namespace qc::kernels
