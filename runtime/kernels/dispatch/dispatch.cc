#include "kernels/dispatch/dispatch.h"

#include <cstdint>
#include <cstring>

namespace qc::kernels {

const KernelTable kReferenceTable = {
    "reference",
    0,
    quantize_f32_s8_reference,
    matmul_s8_u4_f32_reference,
    matmul_s8_u8_f32_reference,
    widen_f16_reference,
    narrow_f16_reference,
    attend_f32_reference,
    add_norm_f32_reference,
    swiglu_f32_reference,
    gelu_f32_reference,
};

const KernelTable* choose_kernels(std::uint32_t flags, const char* forced) {
  const bool any = forced == nullptr || forced[0] == '\0';
  for (const KernelTable* const* table = kernel_tables(); *table != nullptr; ++table) {
    const bool wanted = any ? !(*table)->only_forced : std::strcmp((*table)->isa, forced) == 0;
    if (wanted && ((*table)->needs & ~flags) == 0) return *table;
  }
  return nullptr;
}

}  // namespace qc::kernels
