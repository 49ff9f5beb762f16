#include "kernels/dispatch/dispatch.h"

#include <cstdint>
#include <cstring>

namespace qc::kernels {
namespace {

#ifdef QC_X86
constexpr std::uint32_t kNeedsAvx2 = kAvx2 | kFma | kF16c;

constexpr KernelTable kAvx512VnniTable = {
    "avx512vnni",
    kNeedsAvx2 | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni,
    quantize_f32_s8_avx512,
    matmul_s8_u4_f32_avx512vnni,
    matmul_s8_u8_f32_avx512vnni,
    widen_f16_avx2,
    narrow_f16_avx2,
};

constexpr KernelTable kAvx2Table = {
    "avx2",
    kNeedsAvx2,
    quantize_f32_s8_avx2,
    matmul_s8_u4_f32_avx2,
    matmul_s8_u8_f32_avx2,
    widen_f16_avx2,
    narrow_f16_avx2,
};
#endif

constexpr KernelTable kReferenceTable = {
    "reference",
    0,
    quantize_f32_s8_reference,
    matmul_s8_u4_f32_reference,
    matmul_s8_u8_f32_reference,
    widen_f16_reference,
    narrow_f16_reference,
};

constexpr const KernelTable* kTables[] = {
#ifdef QC_X86
    &kAvx512VnniTable,
    &kAvx2Table,
#endif
    &kReferenceTable,
    nullptr,
};

}  // namespace

const KernelTable* const* kernel_tables() { return kTables; }

const KernelTable* choose_kernels(std::uint32_t flags, const char* forced) {
  const bool any = forced == nullptr || forced[0] == '\0';
  for (const KernelTable* const* table = kTables; *table != nullptr; ++table) {
    const bool named = any || std::strcmp((*table)->isa, forced) == 0;
    if (named && ((*table)->needs & ~flags) == 0) return *table;
  }
  return nullptr;
}

}  // namespace qc::kernels
