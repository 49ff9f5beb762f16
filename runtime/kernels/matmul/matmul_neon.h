// What the NEON matrix kernels share. Internal linkage throughout: see matmul_avx512vnni.cc.
//
// All take k in steps of 8, whose codes are two registers for four columns: one of k .. k+3 and one
// of k+4 .. k+7. Eight bits store them as two blocks, of which the last one of K may be missing.
#ifndef QC_KERNELS_MATMUL_MATMUL_NEON_H_
#define QC_KERNELS_MATMUL_MATMUL_NEON_H_

#include <arm_neon.h>

#include <cstdint>

#include "kernels/matmul/tile.h"
#include "kernels/simd/neon.h"

namespace qc::kernels {
namespace {

constexpr int kStep = 8;
constexpr int kVectors = kPanel / Neon::kLanes;       // registers for a panel
constexpr int kVectorBytes = kBlockBytes / kVectors;  // of a block
constexpr int kPrefetchBytes = 1024;  // hides the latency of L2 where few rows share weights

struct Quads {
  uint8x16_t low, high;
};

// Where the codes of a step lie. `half` is set where only the first four k exist: the high quads
// repeat the low ones then, and meet activations of 0.
template <int kBits>
QC_INLINE Quads load_quads(const std::uint8_t* codes, bool half) {
  static_assert(kBits == 4 || kBits == 8, "no way to unpack this width");
  const uint8x16_t first = vld1q_u8(codes);
  if (kBits == 4) return {vandq_u8(first, vdupq_n_u8(15)), vshrq_n_u8(first, 4)};
  return {first, half ? first : vld1q_u8(codes + kBlockBytes)};
}

// The quads of register v of a tile; `few` rows don't hide the latency of reading them.
template <int kBits>
QC_INLINE Quads load_quads(const std::uint8_t* codes, int64_t panel_bytes, int v, bool half,
                           bool few) {
  const std::uint8_t* at = codes + v / kVectors * panel_bytes + v % kVectors * kVectorBytes;
  if (few && v % kVectors == 0) __builtin_prefetch(at + kPrefetchBytes);
  return load_quads<kBits>(at, half);
}

// Eight codes of activations, or four and zeros.
QC_INLINE int8x8_t load_row(const std::int8_t* q, bool half) {
  if (!half) return vld1_s8(q);
  std::uint32_t quad;
  __builtin_memcpy(&quad, q, sizeof quad);
  return vcreate_s8(quad);
}

// step(codes, k, half) for the steps of a group.
template <typename Kernel, typename Step>
QC_INLINE void each_step(const Group<Kernel>& group, Step step) {
  constexpr int kBlocks = kStep / Codes<Kernel::kBits>::kDepth;
  const std::uint8_t* codes = group.codes;
  int64_t k = group.k;
  int64_t left = group.count();
  for (; left >= kBlocks; left -= kBlocks) {
    step(codes, k, false);
    codes += kBlocks * kBlockBytes;
    k += kStep;
  }
  if (kBlocks > 1 && left > 0) step(codes, k, true);
}

// dots += starts times zero points, or starts that have those already.
template <typename Kernel, int kRows, int kVectors>
QC_INLINE void add_starts(const Group<Kernel>& group, int32x4_t (&dots)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const int32x4_t zero = group.w.zero_points != nullptr
                               ? Neon::load_bytes(group.w.zero_points + group.at(v))
                               : vdupq_n_s32(1);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dots[r][v] = vmlaq_n_s32(dots[r][v], zero, group.start(r));
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_MATMUL_NEON_H_
