// Tells sanitizers of accesses that they don't see by themselves: those of masked instructions.
// Nothing where the build has no sanitizer.
#ifndef QC_KERNELS_SANITIZE_H_
#define QC_KERNELS_SANITIZE_H_

#include <cstdint>

#include "kernels/inline.h"

#if defined(QC_SANITIZE_ADDRESS)
#define QC_SANITIZER_READS __asan_loadN
#define QC_SANITIZER_WRITES __asan_storeN
#elif defined(QC_SANITIZE_THREAD)
#define QC_SANITIZER_READS __tsan_read_range
#define QC_SANITIZER_WRITES __tsan_write_range
#endif

#ifdef QC_SANITIZER_READS
extern "C" {
void QC_SANITIZER_READS(std::uintptr_t address, std::uintptr_t size);
void QC_SANITIZER_WRITES(std::uintptr_t address, std::uintptr_t size);
#ifdef QC_SANITIZE_THREAD
void __tsan_acquire(void* address);
void __tsan_release(void* address);
#endif
}
#endif

namespace qc::kernels {

#ifdef QC_SANITIZER_READS
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// An instruction reads or writes `count` of the `most` elements at p: all if there are more, none
// if there are less than one.
template <typename T>
QC_INLINE void reads([[maybe_unused]] const T* p, [[maybe_unused]] std::int64_t count,
                     [[maybe_unused]] std::int64_t most) {
#ifdef QC_SANITIZER_READS
  const std::int64_t used = count < most ? count : most;
  if (used > 0) QC_SANITIZER_READS(reinterpret_cast<std::uintptr_t>(p), sizeof(T) * used);
#endif
}

template <typename T>
QC_INLINE void writes([[maybe_unused]] T* p, [[maybe_unused]] std::int64_t count,
                      [[maybe_unused]] std::int64_t most) {
#ifdef QC_SANITIZER_WRITES
  const std::int64_t used = count < most ? count : most;
  if (used > 0) QC_SANITIZER_WRITES(reinterpret_cast<std::uintptr_t>(p), sizeof(T) * used);
#endif
}

// What a host promises, to the sanitizer of races, which does not see the host's own atomics: all
// before `releases(p)` comes before what follows an `acquires(p)` behind it.
QC_INLINE void releases([[maybe_unused]] void* p) {
#ifdef QC_SANITIZE_THREAD
  __tsan_release(p);
#endif
}

QC_INLINE void acquires([[maybe_unused]] void* p) {
#ifdef QC_SANITIZE_THREAD
  __tsan_acquire(p);
#endif
}

}  // namespace qc::kernels

#endif  // QC_KERNELS_SANITIZE_H_
