// A machine without kernels of its own.
#include <cstdint>

#include "kernels/dispatch/dispatch.h"

namespace qc::kernels {
namespace {

constexpr const KernelTable* kTables[] = {&kReferenceTable, nullptr};

}  // namespace

const KernelTable* const* kernel_tables() { return kTables; }

std::uint32_t cpu_flags() { return 0; }

}  // namespace qc::kernels
