#include "kernels/dispatch/dispatch.h"

#include <cstdint>
#include <cstring>

namespace qc::kernels {
namespace {

constexpr bool kBest = false, kForced = true;  // KernelTable::only_forced

// The kernels that go by the registers of float32.
#define QC_SIMD(architecture, simd, needs, convert, ...) \
  constexpr std::uint32_t kNeeds_##simd = needs;         \
  constexpr void add_##simd(KernelTable& table) {        \
    table.quantize = quantize_f32_s8_##simd;             \
    table.widen_f16 = widen_f16_##convert;               \
    table.narrow_f16 = narrow_f16_##convert;             \
    table.attend = attend_f32_##simd;                    \
    table.add_norm = add_norm_f32_##simd;                \
    table.swiglu = swiglu_f32_##simd;                    \
    table.gelu = gelu_f32_##simd;                        \
  }
#define QC_ADD_LINEAR(letter, bits, symbol) \
  table.linear[kForm##letter + bits] = linear_s8_##letter##bits##_f32_##symbol;
#define QC_ISA(name, symbol, base, more, compiler_flags, instruction, simd, chosen) \
  constexpr KernelTable make_##symbol() {                                           \
    KernelTable table{};                                                            \
    table.isa = name;                                                               \
    table.needs = kNeeds_##base | kNeeds_##simd | (more);                           \
    table.only_forced = chosen;                                                     \
    QC_EACH_FORM(QC_ADD_LINEAR, symbol)                                             \
    add_##simd(table);                                                              \
    return table;                                                                   \
  }                                                                                 \
  constexpr KernelTable kTable_##symbol = make_##symbol();
#include "kernels/dispatch/built_isas.inc"

constexpr const KernelTable* kTables[] = {
#define QC_ISA(name, symbol, ...) &kTable_##symbol,
#include "kernels/dispatch/built_isas.inc"
    nullptr,
};

}  // namespace

const KernelTable* const* kernel_tables() { return kTables; }

const KernelTable* choose_kernels(std::uint32_t flags, const char* forced) {
  const bool any = forced == nullptr || forced[0] == '\0';
  for (const KernelTable* const* table = kernel_tables(); *table != nullptr; ++table) {
    const bool wanted = any ? !(*table)->only_forced : std::strcmp((*table)->isa, forced) == 0;
    if (wanted && ((*table)->needs & ~flags) == 0) return *table;
  }
  return nullptr;
}

}  // namespace qc::kernels
