// What files that are compiled for different CPUs may share.
#ifndef QC_KERNELS_INLINE_H_
#define QC_KERNELS_INLINE_H_

#include <cstdint>

// Part of its caller, always: a function with the instructions of one ISA must not reach the
// linker, which could pick it for every caller.
#define QC_INLINE inline __attribute__((always_inline))

// Callable in CUDA kernels too.
#ifdef __CUDACC__
#define QC_EVERYWHERE __host__ __device__
#else
#define QC_EVERYWHERE
#endif

namespace qc::kernels {

template <typename A, typename B>
QC_EVERYWHERE QC_INLINE constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// A number as a type.
template <int kNumber>
struct Constant {
  static constexpr int kValue = kNumber;
};

// body(Constant<count>) for a count of 1 .. kMost; nothing for 0.
template <int kMost, typename Body>
QC_INLINE void with_count(std::int64_t count, Body body) {
  if constexpr (kMost > 0) {
    if (count == kMost) {
      body(Constant<kMost>{});
    } else {
      with_count<kMost - 1>(count, body);
    }
  }
}

}  // namespace qc::kernels

#endif  // QC_KERNELS_INLINE_H_
