// Which kernels run on which CPU.
#ifndef QC_KERNELS_DISPATCH_DISPATCH_H_
#define QC_KERNELS_DISPATCH_DISPATCH_H_

#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/attention/attention.h"
#include "kernels/convert/convert.h"
#include "kernels/matmul/matmul.h"
#include "kernels/norm/norm.h"
#include "kernels/quantize/quantize.h"

namespace qc::kernels {

// What the CPU has and the operating system saves.
enum CpuFlag : std::uint32_t {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kF16c = 1u << 2,
  kAvx512f = 1u << 3,
  kAvx512bw = 1u << 4,
  kAvx512dq = 1u << 5,
  kAvx512vl = 1u << 6,
  kAvx512vnni = 1u << 7,
  kAvxVnni = 1u << 8,
  kDotprod = 1u << 9,
  kI8mm = 1u << 10,
  kAmxInt8 = 1u << 11,
};

struct KernelTable {
  const char* isa;
  std::uint32_t needs;  // CpuFlags, all of them
  Quantize quantize;
  MatMul matmul_u4;
  MatMul matmul_u8;
  Widen widen_f16;
  Narrow narrow_f16;
  Attend attend;
  AddNorm add_norm;
  SwiGlu swiglu;
  Gelu gelu;
  bool only_forced = false;  // never chosen unless named: there for tests and measurements
};

// Runs on any machine.
extern const KernelTable kReferenceTable;

// The flags of this CPU.
std::uint32_t cpu_flags();

// The best table for `flags`. `forced` names an ISA to use instead (null or "": none); the result
// is null where that ISA is unknown or needs flags that are absent.
const KernelTable* choose_kernels(std::uint32_t flags, const char* forced);

// Every table of this build, best first, ended by null.
const KernelTable* const* kernel_tables();

}  // namespace qc::kernels

#endif  // QC_KERNELS_DISPATCH_DISPATCH_H_
