// Stands for the GPU where the kernels are compiled for the host: slow, exact and strict. It serves
// one thread of the host.
//
// Every thread of a block is a fiber. It runs until it meets a barrier or an instruction of its
// whole warp, then the next one runs; so each interleaving error that the order of threads can
// show, one of the two orders shows (`set_reverse`). What real hardware would let pass or punish
// at random ends the process here: threads of a warp that meet different instructions, a barrier
// that not all threads reach, a wide access that is not aligned. Copies into shared memory arrive
// as late as they may: until the thread waits for them, their target holds rubbish.
#ifndef QC_CUDA_TESTING_EMULATOR_H_
#define QC_CUDA_TESTING_EMULATOR_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "kernels/convert/convert.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(threads)

struct uint2 {
  std::uint32_t x, y;
};
struct uint4 {
  std::uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint2 make_uint2(std::uint32_t x, std::uint32_t y) { return {x, y}; }

namespace qc::cuda::emulator {

inline constexpr int kLanes = 32;

extern dim3 g_thread, g_block, g_grid;  // of the fiber that runs

// Runs a kernel, given as what one thread does.
void run(dim3 grid, int threads, const std::function<void()>& thread);

// Whether threads and blocks run from the last to the first.
void set_reverse(bool reverse);

[[noreturn]] void fail(const char* what);

void wait_for_block();

// An instruction of a whole warp: each lane gives its operands; the last one to arrive computes
// every lane's result from all operands, with a function that names the instruction.
struct WarpCall {
  const void* operands;
  void* result;
};
using WarpInstruction = void (*)(const WarpCall* lanes, const void* immediate);
void call_together(WarpInstruction instruction, const void* immediate, const void* operands,
                   void* result);

void copy_async(void* shared, const void* from, bool present);
void commit_copies();
void wait_for_copies();

// The instruction itself, on the fragments of all lanes.
struct MmaOperands {
  std::uint32_t a[4], b[2];
  std::int32_t c[4];
};
void mma_s8_s8(const WarpCall* lanes, const void*);
void shuffle_xor(const WarpCall* lanes, const void* mask);

template <typename T>
void check_alignment(const T* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof(T) != 0) fail("an access is not aligned");
}

}  // namespace qc::cuda::emulator

#define threadIdx ::qc::cuda::emulator::g_thread
#define blockIdx ::qc::cuda::emulator::g_block
#define gridDim ::qc::cuda::emulator::g_grid

inline void __syncthreads() { qc::cuda::emulator::wait_for_block(); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  static_assert(sizeof(T) == 4, "one register");
  if (mask != 0xffffffff) qc::cuda::emulator::fail("only whole warps are emulated");
  T result;
  qc::cuda::emulator::call_together(qc::cuda::emulator::shuffle_xor, &bits, &value, &result);
  return result;
}

inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }

namespace qc::cuda {

inline void mma_s8_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], uint2 b) {
  const emulator::MmaOperands operands{
      {a[0], a[1], a[2], a[3]}, {b.x, b.y}, {d[0], d[1], d[2], d[3]}};
  emulator::call_together(emulator::mma_s8_s8, nullptr, &operands, d);
}

inline std::int32_t dot_s8(std::uint32_t a, std::uint32_t b, std::int32_t sum) {
  for (int bit = 0; bit < 32; bit += 8) {
    sum += static_cast<std::int8_t>(a >> bit) * static_cast<std::int8_t>(b >> bit);
  }
  return sum;
}

inline std::uint32_t byte_of_each(std::uint32_t a, std::uint32_t b, std::uint32_t digits) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  std::uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    found |= static_cast<std::uint32_t>(bytes >> 8 * (digits >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return found;
}

inline void copy_async(void* shared, const void* from, bool present) {
  emulator::copy_async(shared, from, present);
}
inline void commit_copies() { emulator::commit_copies(); }
inline void wait_for_copies() { emulator::wait_for_copies(); }

template <typename T>
T load(const T* from) {
  emulator::check_alignment(from);
  return *from;
}
template <typename T>
void store(T* to, T value) {
  emulator::check_alignment(to);
  *to = value;
}
inline uint4 load_once(const uint4* from) { return load(from); }

inline float float_of_half(std::uint16_t bits) { return kernels::float_from_half(bits); }
inline float float_of_bfloat(std::uint16_t bits) { return kernels::float_from_bfloat(bits); }
inline std::uint16_t half_of(float value) { return kernels::half_from_float(value); }
inline std::uint16_t bfloat_of(float value) { return kernels::bfloat_from_float(value); }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, void*,
            const Arguments&... arguments) {
  emulator::run(grid, threads, [&] { kernel(arguments...); });
}

}  // namespace qc::cuda

#endif  // QC_CUDA_TESTING_EMULATOR_H_
