// Which kernels run on which CPU.
#ifndef QC_KERNELS_DISPATCH_DISPATCH_H_
#define QC_KERNELS_DISPATCH_DISPATCH_H_

#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/attention/attention.h"
#include "kernels/convert/convert.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/quantize/quantize.h"

namespace qc::kernels {

// What the CPU has and the operating system saves.
enum CpuFlag : std::uint32_t {
#define QC_X86_FLAG(number, flag, ...) flag = 1u << number,
#define QC_ARM_FLAG(number, flag, ...) flag = 1u << number,
#include "kernels/dispatch/isas.inc"
};

struct KernelTable {
  const char* isa;
  std::uint32_t needs;  // CpuFlags, all of them
  bool only_forced;     // never chosen unless named: there for tests and measurements
  Quantize quantize;
  Linear linear[kForms];  // by the form of the weights; null where there is none
  Widen widen_f16;
  Narrow narrow_f16;
  Attend attend;
  AddNorm add_norm;
  SwiGlu swiglu;
  Gelu gelu;
};

// The flags of this CPU.
std::uint32_t cpu_flags();

// The best table for `flags`. `forced` names an ISA to use instead (null or "": none); the result
// is null where that ISA is unknown or needs flags that are absent.
const KernelTable* choose_kernels(std::uint32_t flags, const char* forced);

// Every table of this build, best first, ended by null.
const KernelTable* const* kernel_tables();

}  // namespace qc::kernels

#endif  // QC_KERNELS_DISPATCH_DISPATCH_H_
