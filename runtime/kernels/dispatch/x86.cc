// The tables of x86, and which of their needs this CPU meets.
#include <cpuid.h>

#include <cstdint>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/dispatch/dispatch.h"

namespace qc::kernels {
namespace {

constexpr std::uint32_t kNeedsAvx2 = kAvx2 | kFma | kF16c;
constexpr std::uint32_t kNeedsAvx512Vnni =
    kNeedsAvx2 | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni;

// Tables differ in their matrix kernels; the rest goes by the width of the registers.
constexpr KernelTable on_avx512(const char* isa, std::uint32_t needs, MatMul u4, MatMul u8) {
  return {
      isa,
      needs,
      quantize_f32_s8_avx512,
      u4,
      u8,
      widen_f16_avx2,
      narrow_f16_avx2,
      attend_f32_avx512,
      add_norm_f32_avx512,
      swiglu_f32_avx512,
      gelu_f32_avx512,
  };
}

constexpr KernelTable on_avx2(const char* isa, std::uint32_t needs, MatMul u4, MatMul u8,
                              bool only_forced = false) {
  return {
      isa,
      needs,
      quantize_f32_s8_avx2,
      u4,
      u8,
      widen_f16_avx2,
      narrow_f16_avx2,
      attend_f32_avx2,
      add_norm_f32_avx2,
      swiglu_f32_avx2,
      gelu_f32_avx2,
      only_forced,
  };
}

#ifdef QC_AMX
constexpr KernelTable kAmxInt8Table = on_avx512("amxint8", kNeedsAvx512Vnni | kAmxInt8,
                                                matmul_s8_u4_f32_amxint8, matmul_s8_u8_f32_amxint8);
#endif

constexpr KernelTable kAvx512VnniTable = on_avx512(
    "avx512vnni", kNeedsAvx512Vnni, matmul_s8_u4_f32_avx512vnni, matmul_s8_u8_f32_avx512vnni);

#ifdef QC_AVXVNNI
constexpr KernelTable kAvxVnniTable =
    on_avx2("avxvnni", kNeedsAvx2 | kAvxVnni, matmul_s8_u4_f32_avxvnni, matmul_s8_u8_f32_avxvnni);
#endif

// The kernels of avxvnni in the encoding of AVX-512.
constexpr KernelTable kAvx512Vnni256Table =
    on_avx2("avx512vnni-256", kNeedsAvx512Vnni, matmul_s8_u4_f32_avx512vnni_256,
            matmul_s8_u8_f32_avx512vnni_256, true);

constexpr KernelTable kAvx2Table =
    on_avx2("avx2", kNeedsAvx2, matmul_s8_u4_f32_avx2, matmul_s8_u8_f32_avx2);

constexpr const KernelTable* kTables[] = {
#ifdef QC_AMX
    &kAmxInt8Table,
#endif
    &kAvx512VnniTable,
#ifdef QC_AVXVNNI
    &kAvxVnniTable,
#endif
    &kAvx512Vnni256Table, &kAvx2Table, &kReferenceTable, nullptr,
};

std::uint64_t saved_register_state() {
  std::uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

// Linux lends a process the registers of AMX when it asks, and only then: threads' signal frames
// grow by 8 KiB. Refused where some thread's signal stack is too small for that.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}

bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }

}  // namespace

const KernelTable* const* kernel_tables() { return kTables; }

std::uint32_t cpu_flags() {
  constexpr std::uint64_t kYmm = 0x06;  // xmm and ymm
  constexpr std::uint64_t kZmm = 0xe6;  // and opmask, zmm
  constexpr std::uint64_t kTiles = 0x60000;
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
  const unsigned last_subleaf = eax;
  const unsigned features = ebx;
  const unsigned more_features = ecx;
  const bool amx = bit(edx, 24) && bit(edx, 25);  // tiles, and int8 products of them
  if (bit(features, 5)) flags |= kAvx2;
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && bit(eax, 4)) {
    flags |= kAvxVnni;
  }
  if ((saved & kZmm) != kZmm) return flags;
  if (bit(features, 16)) flags |= kAvx512f;
  if (bit(features, 17)) flags |= kAvx512dq;
  if (bit(features, 30)) flags |= kAvx512bw;
  if (bit(features, 31)) flags |= kAvx512vl;
  if (bit(more_features, 11)) flags |= kAvx512vnni;
  if (amx && (saved & kTiles) == kTiles && may_use_tiles()) flags |= kAmxInt8;
  return flags;
}

}  // namespace qc::kernels
