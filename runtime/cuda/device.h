// What all kernels share: the instructions they are written in, loads and conversions.
//
// The same kernels are compiled for the host by the tests, where testing/emulator.h stands for the
// GPU; so whatever is not plain C++ is behind a function here.
#ifndef QC_CUDA_DEVICE_H_
#define QC_CUDA_DEVICE_H_

#include <cstddef>
#include <cstdint>

#include "cuda/elements.h"
#include "kernels/planes.h"

#ifdef QC_CUDA_EMULATED
#include "cuda/testing/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace qc::cuda {

using kernels::ceil_div;
using kernels::kPanel;
using kernels::kQuads;
using kernels::kStrip;
using kernels::Planes;

inline constexpr int kWarp = 32;

#ifndef QC_CUDA_EMULATED

// d += a b: signed bytes a [16, 32] and b [32, 8], in the layout of the PTX manual.
__device__ inline void mma_s8_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], uint2 b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// sum + the product of four signed bytes by four others.
__device__ inline std::int32_t dot_s8(std::uint32_t a, std::uint32_t b, std::int32_t sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

// Bytes of a and b, 0 .. 3 and 4 .. 7: those that the digits of four bits name, the lowest first.
__device__ inline std::uint32_t byte_of_each(std::uint32_t a, std::uint32_t b,
                                             std::uint32_t digits) {
  return __byte_perm(a, b, digits);
}

// Copies 16 bytes into shared memory behind the thread's back; zeros where `present` is false, and
// then `from` is not read.
__device__ inline void copy_async(void* shared, const void* from, bool present) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the copies that this thread has committed.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Weights are read once: they should not push anything else out of the caches.
__device__ inline uint4 load_once(const uint4* from) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

// Reads what nothing writes while the kernel runs.
template <typename T>
__device__ inline T load(const T* from) {
  return __ldg(from);
}

template <typename T>
__device__ inline void store(T* to, T value) {
  *to = value;
}

__device__ inline float float_of_half(std::uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
__device__ inline float float_of_bfloat(std::uint16_t bits) {
  return __bfloat162float(__ushort_as_bfloat16(bits));
}
__device__ inline std::uint16_t half_of(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
__device__ inline std::uint16_t bfloat_of(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// Enqueues a kernel on a stream. `run` asks for errors, once.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, void* stream,
            const Arguments&... arguments) {
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
}

#endif  // QC_CUDA_EMULATED

__device__ inline float widen(Element element, std::uint16_t bits) {
  return element == Element::kFloat16 ? float_of_half(bits) : float_of_bfloat(bits);
}

__device__ inline std::uint16_t narrow(Element element, float value) {
  return element == Element::kFloat16 ? half_of(value) : bfloat_of(value);
}

// Null, or what went wrong with the launches since it was last asked.
inline const char* last_error() {
#ifdef QC_CUDA_EMULATED
  return nullptr;
#else
  const cudaError_t error = cudaPeekAtLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(cudaGetLastError());
#endif
}

inline bool aligned(const void* pointer, std::size_t to) {
  return reinterpret_cast<std::uintptr_t>(pointer) % to == 0;
}

}  // namespace qc::cuda

#endif  // QC_CUDA_DEVICE_H_
