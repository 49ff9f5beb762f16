// The flags of an x86 CPU.
#include <cpuid.h>

#include <cstdint>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/dispatch/dispatch.h"

namespace qc::kernels {
namespace {

// Registers, as xgetbv numbers those that are saved.
constexpr std::uint64_t kYmm = 0x06;  // xmm and ymm
constexpr std::uint64_t kZmm = 0xe6;  // and opmask, zmm
constexpr std::uint64_t kTiles = 0x60000;

enum Word { kEax, kEbx, kEcx, kEdx };

// Where a flag stands.
struct Place {
  CpuFlag flag;
  unsigned leaf, subleaf;
  Word word;
  int bit;
  std::uint64_t saved;
};

constexpr Place kPlaces[] = {
#define QC_X86_FLAG(number, flag, leaf, subleaf, word, bit, saved) \
  {flag, leaf, subleaf, word, bit, saved},
#include "kernels/dispatch/isas.inc"
};

bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }

// What cpuid says of a leaf; zeros where it knows none of the number.
struct CpuId {
  CpuId(unsigned leaf, unsigned subleaf) {
    if (__get_cpuid_count(leaf, subleaf, words, words + 1, words + 2, words + 3) == 0) {
      for (unsigned& word : words) word = 0;
    }
  }
  unsigned words[4];
};

bool has(const Place& place) {
  // The first subleaf says which is the last.
  if (place.subleaf > 0 && CpuId(place.leaf, 0).words[kEax] < place.subleaf) return false;
  return bit(CpuId(place.leaf, place.subleaf).words[place.word], place.bit);
}

std::uint64_t saved_registers() {
  constexpr int kOsXsave = 27, kAvx = 28;
  const unsigned features = CpuId(1, 0).words[kEcx];
  if (!bit(features, kOsXsave) || !bit(features, kAvx)) return 0;
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

}  // namespace

std::uint32_t cpu_flags() {
  const std::uint64_t saved = saved_registers();
  std::uint32_t flags = 0;
  for (const Place& place : kPlaces) {
    if ((saved & place.saved) == place.saved && has(place)) flags |= place.flag;
  }
  constexpr std::uint32_t kAmx = kAmxTile | kAmxInt8;
  if ((flags & kAmx) != 0 && !may_use_tiles()) flags &= ~kAmx;
  return flags;
}

}  // namespace qc::kernels
