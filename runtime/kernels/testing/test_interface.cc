#include "kernels/testing/test_interface.h"

#include <cstdint>

#include "kernels/convert/convert.h"
#include "kernels/dispatch/dispatch.h"

using qc::kernels::KernelTable;

namespace {

// Calls body(table) with an ISA's kernels; 0 where they can't run here.
template <typename Body>
int with_kernels(const char* isa, Body&& body) {
  static const std::uint32_t flags = qc::kernels::cpu_flags();
  const KernelTable* table = qc::kernels::choose_kernels(flags, isa);
  if (table == nullptr) return 0;
  body(*table);
  return 1;
}

}  // namespace

std::uint32_t qc_cpu_flags() { return qc::kernels::cpu_flags(); }

const char* qc_choose(std::uint32_t flags, const char* forced) {
  const KernelTable* table = qc::kernels::choose_kernels(flags, forced);
  return table != nullptr ? table->isa : nullptr;
}

int qc_table(int index, const char** isa, std::uint32_t* needs) {
  const KernelTable* const* tables = qc::kernels::kernel_tables();
  for (int i = 0; tables[i] != nullptr; ++i) {
    if (i != index) continue;
    *isa = tables[i]->isa;
    *needs = tables[i]->needs;
    return 1;
  }
  return 0;
}

int qc_quantize(const char* isa, const qc::kernels::QuantizeRow* row) {
  return with_kernels(isa, [&](const KernelTable& table) { table.quantize(*row); });
}

int qc_linear(const char* isa, int form, const qc::kernels::QuantizedRows* q,
              const qc::kernels::PlaneWeights* w, const qc::kernels::Tile* t) {
  return with_kernels(isa, [&](const KernelTable& table) { table.linear[form](*q, *w, *t); });
}

int qc_load_tiles(const void* config) {
#ifdef QC_HAS_AMXINT8
  if ((qc::kernels::cpu_flags() & qc::kernels::kAmxInt8) == 0) return 0;
  __asm__ volatile("ldtilecfg %0" : : "m"(*static_cast<const char(*)[64]>(config)));
  return 1;
#else
  static_cast<void>(config);
  return 0;
#endif
}

int qc_store_tiles(void* config) {
#ifdef QC_HAS_AMXINT8
  if ((qc::kernels::cpu_flags() & qc::kernels::kAmxInt8) == 0) return 0;
  __asm__ volatile("sttilecfg %0" : "=m"(*static_cast<char(*)[64]>(config)));
  return 1;
#else
  static_cast<void>(config);
  return 0;
#endif
}

int qc_convert(const char* isa, int bfloat, int narrow, const void* from, void* to,
               std::int64_t count) {
  return with_kernels(isa, [&](const KernelTable& table) {
    if (narrow != 0) {
      auto* function = bfloat != 0 ? qc::kernels::narrow_bf16 : table.narrow_f16;
      function(static_cast<const float*>(from), static_cast<std::uint16_t*>(to), count);
    } else {
      auto* function = bfloat != 0 ? qc::kernels::widen_bf16 : table.widen_f16;
      function(static_cast<const std::uint16_t*>(from), static_cast<float*>(to), count);
    }
  });
}

int qc_attend(const char* isa, const qc::kernels::AttentionRows* rows) {
  return with_kernels(isa, [&](const KernelTable& table) { table.attend(*rows); });
}

int qc_add_norm(const char* isa, const qc::kernels::NormRow* row) {
  return with_kernels(isa, [&](const KernelTable& table) { table.add_norm(*row); });
}

int qc_swiglu(const char* isa, const float* gate, const float* up, std::int64_t count, float* y) {
  return with_kernels(isa, [&](const KernelTable& table) { table.swiglu(gate, up, count, y); });
}

int qc_gelu(const char* isa, const float* x, std::int64_t count, int by_tanh, float* y) {
  return with_kernels(isa,
                      [&](const KernelTable& table) { table.gelu(x, count, by_tanh != 0, y); });
}

void qc_pack_keys(const float* k, std::int64_t stride, std::int64_t keys, std::int64_t d,
                  float* packed) {
  qc::kernels::pack_keys(k, stride, keys, d, packed);
}

void qc_embedding(int form, const qc::kernels::PlaneWeights* w, std::int64_t column, float* out) {
  qc::kernels::embedding_f32(form, *w, column, out);
}
