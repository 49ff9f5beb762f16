// The flags of a 64-bit Arm CPU. Only Linux is asked; the numbers are part of its interface.
#include <cstdint>

#include "kernels/dispatch/dispatch.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

namespace qc::kernels {

std::uint32_t cpu_flags() {
  std::uint32_t flags = 0;
#ifdef __linux__
#define QC_ARM_FLAG(number, flag, word, bit) \
  if ((getauxval(word) >> (bit) & 1) != 0) flags |= flag;
#include "kernels/dispatch/isas.inc"
#endif
  return flags;
}

}  // namespace qc::kernels
