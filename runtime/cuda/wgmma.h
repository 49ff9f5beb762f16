// The instructions of Hopper's warpgroups. On the emulated GPU they are testing/emulator.h's.
#ifndef QC_CUDA_WGMMA_H_
#define QC_CUDA_WGMMA_H_

#include <cstdint>

#include "cuda/device.h"

namespace qc::cuda {

inline constexpr int kWgmmaTiles = 8;  // of 8 tokens

#ifndef QC_CUDA_EMULATED

// What this thread's copies put into shared memory becomes visible to wgmma (behind a barrier).
__device__ inline void show_to_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders the registers of what follows behind what was done to them before.
__device__ inline void begin_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit_wgmma() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// 64 tokens by 32 k in shared memory, in 32-byte swizzle: the address, the distance of 256 bytes
// from eight tokens to the next, and the swizzle, as the PTX manual encodes them.
__device__ inline std::uint64_t describe_codes(const std::int8_t* shared) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  constexpr std::uint64_t kStride = 256 / 16, kUnused = 1, kSwizzle32 = 3;
  return (address & 0x3ffff) >> 4 | kUnused << 16 | kStride << 32 | kSwizzle32 << 62;
}

// d += a b for the whole warpgroup: unsigned bytes a [64, 32], signed bytes b [32, 64].
__device__ inline void wgmma_u8_s8(std::int32_t (&d)[kWgmmaTiles][4], const std::uint32_t (&a)[4],
                                   const std::int8_t* shared) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add;\n"
      "}"
      : "+r"(d[0][0]), "+r"(d[0][1]), "+r"(d[0][2]), "+r"(d[0][3]), "+r"(d[1][0]), "+r"(d[1][1]),
        "+r"(d[1][2]), "+r"(d[1][3]), "+r"(d[2][0]), "+r"(d[2][1]), "+r"(d[2][2]), "+r"(d[2][3]),
        "+r"(d[3][0]), "+r"(d[3][1]), "+r"(d[3][2]), "+r"(d[3][3]), "+r"(d[4][0]), "+r"(d[4][1]),
        "+r"(d[4][2]), "+r"(d[4][3]), "+r"(d[5][0]), "+r"(d[5][1]), "+r"(d[5][2]), "+r"(d[5][3]),
        "+r"(d[6][0]), "+r"(d[6][1]), "+r"(d[6][2]), "+r"(d[6][3]), "+r"(d[7][0]), "+r"(d[7][1]),
        "+r"(d[7][2]), "+r"(d[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(describe_codes(shared)), "r"(1));
}

// Waits for all products. What they read and write stays in its registers until then, which the
// empty statements tell the compiler.
template <int kSteps>
__device__ inline void wait_for_wgmma(std::int32_t (&d)[2][kWgmmaTiles][4],
                                      std::uint32_t (&a)[kSteps][2][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < 8 * kWgmmaTiles; ++i) {
    asm volatile("" : "+r"(d[i / 4 / kWgmmaTiles][i / 4 % kWgmmaTiles][i % 4])::"memory");
  }
#pragma unroll
  for (int i = 0; i < 8 * kSteps; ++i) {
    asm volatile("" : "+r"(a[i / 8][i / 4 % 2][i % 4])::"memory");
  }
}

#endif  // QC_CUDA_EMULATED

}  // namespace qc::cuda

#endif  // QC_CUDA_WGMMA_H_
