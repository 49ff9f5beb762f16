// The tables of 64-bit Arm, and which of their needs this CPU meets.
#include <cstdint>

#include "kernels/dispatch/dispatch.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

namespace qc::kernels {
namespace {

// Tables differ in their matrix kernels.
constexpr KernelTable on_neon(const char* isa, std::uint32_t needs, MatMul u4, MatMul u8) {
  return {
      isa,
      needs,
      quantize_f32_s8_neon,
      u4,
      u8,
      widen_f16_neon,
      narrow_f16_neon,
      attend_f32_neon,
      add_norm_f32_neon,
      swiglu_f32_neon,
      gelu_f32_neon,
  };
}

constexpr KernelTable kNeonI8mmTable =
    on_neon("neoni8mm", kDotprod | kI8mm, matmul_s8_u4_f32_neoni8mm, matmul_s8_u8_f32_neoni8mm);

constexpr KernelTable kNeonDotprodTable =
    on_neon("neondotprod", kDotprod, matmul_s8_u4_f32_neondotprod, matmul_s8_u8_f32_neondotprod);

constexpr const KernelTable* kTables[] = {
    &kNeonI8mmTable,
    &kNeonDotprodTable,
    &kReferenceTable,
    nullptr,
};

}  // namespace

const KernelTable* const* kernel_tables() { return kTables; }

// Only Linux is asked; the numbers are part of its interface.
std::uint32_t cpu_flags() {
  std::uint32_t flags = 0;
#ifdef __linux__
  constexpr unsigned long kHwcapAsimdDp = 1ul << 20;
  constexpr unsigned long kHwcap2I8mm = 1ul << 13;
  if ((getauxval(AT_HWCAP) & kHwcapAsimdDp) != 0) flags |= kDotprod;
  if ((getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0) flags |= kI8mm;
#endif
  return flags;
}

}  // namespace qc::kernels
