#include <cstdint>

#include "kernels/dispatch/dispatch.h"

#ifdef QC_X86
#include <cpuid.h>

namespace qc::kernels {
namespace {

std::uint64_t saved_register_state() {
  std::uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }

}  // namespace

std::uint32_t cpu_flags() {
  constexpr std::uint64_t kYmm = 0x06;  // xmm and ymm
  constexpr std::uint64_t kZmm = 0xe6;  // and opmask, zmm
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return 0;
  const bool osxsave = bit(ecx, 27);
  const bool avx = bit(ecx, 28);
  if (!osxsave || !avx) return 0;
  const std::uint64_t saved = saved_register_state();
  if ((saved & kYmm) != kYmm) return 0;
  std::uint32_t flags = 0;
  if (bit(ecx, 12)) flags |= kFma;
  if (bit(ecx, 29)) flags |= kF16c;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return flags;
  if (bit(ebx, 5)) flags |= kAvx2;
  if ((saved & kZmm) != kZmm) return flags;
  if (bit(ebx, 16)) flags |= kAvx512f;
  if (bit(ebx, 17)) flags |= kAvx512dq;
  if (bit(ebx, 30)) flags |= kAvx512bw;
  if (bit(ebx, 31)) flags |= kAvx512vl;
  if (bit(ecx, 11)) flags |= kAvx512vnni;
  return flags;
}

}  // namespace qc::kernels

#else

namespace qc::kernels {

std::uint32_t cpu_flags() { return 0; }

}  // namespace qc::kernels

#endif
