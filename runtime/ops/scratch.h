#ifndef QC_OPS_SCRATCH_H_
#define QC_OPS_SCRATCH_H_

#include <cstddef>
#include <memory>

namespace qc::ops {

inline constexpr std::size_t kCacheLine = 64;

// Memory that a thread keeps between calls; what it holds does not survive the next `get`.
class Scratch {
 public:
  // `bytes` of storage, aligned to a cache line.
  char* get(std::size_t bytes) {
    if (bytes + kCacheLine > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(new char[bytes + kCacheLine]);
      size_ = bytes + kCacheLine;
    }
    void* start = memory_.get();
    std::size_t space = size_;
    return static_cast<char*>(std::align(kCacheLine, bytes, start, space));
  }

 private:
  std::unique_ptr<char[]> memory_;
  std::size_t size_ = 0;
};

}  // namespace qc::ops

#endif  // QC_OPS_SCRATCH_H_
