// Tells sanitizers of accesses that they don't see by themselves: those of masked instructions, and
// of operands in assembly. Nothing where the build has no sanitizer.
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
}
#endif

namespace qc::kernels {

#ifdef QC_SANITIZER_READS
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// An instruction reads or writes `count` of the `most` elements at p: all if there are more, none if
// there are less than one.
template <typename T>
QC_INLINE void reads(const T* p, std::int64_t count, std::int64_t most) {
#ifdef QC_SANITIZER_READS
  const std::int64_t used = count < most ? count : most;
  if (used > 0) QC_SANITIZER_READS(reinterpret_cast<std::uintptr_t>(p), sizeof(T) * used);
#else
  (void)p, (void)count, (void)most;
#endif
}

template <typename T>
QC_INLINE void writes(T* p, std::int64_t count, std::int64_t most) {
#ifdef QC_SANITIZER_WRITES
  const std::int64_t used = count < most ? count : most;
  if (used > 0) QC_SANITIZER_WRITES(reinterpret_cast<std::uintptr_t>(p), sizeof(T) * used);
#else
  (void)p, (void)count, (void)most;
#endif
}

}  // namespace qc::kernels

#endif  // QC_KERNELS_SANITIZE_H_
