// A machine without kernels of its own.
#include <cstdint>

#include "kernels/dispatch/dispatch.h"

namespace qc::kernels {

std::uint32_t cpu_flags() { return 0; }

}  // namespace qc::kernels
