#ifndef QC_OPS_SCRATCH_H_
#define QC_OPS_SCRATCH_H_

#include <cstddef>
#include <memory>
#include <new>

#include "kernels/sanitize.h"

namespace qc::ops {

inline constexpr std::size_t kCacheLine = 64;

// Memory that a thread keeps between calls; what it holds does not survive the next `get`.
class Scratch {
 public:
  // `bytes` of storage, aligned to a cache line. With sanitizers just so many, and new ones each
  // time, so that they see accesses beside them.
  char* get(std::size_t bytes) {
    if (kernels::kSanitized || bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(bytes, kAlignment)));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{kCacheLine};
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
  };

  std::unique_ptr<char, Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace qc::ops

#endif  // QC_OPS_SCRATCH_H_
