// Memory on the device for the time of one call, from the arena of the execution provider.
//
// ONNX Runtime's own CUDA kernels take theirs from there too. The arena knows the stream: a block
// given back while kernels still wait on the stream goes to later work of that stream only. It asks
// CUDA for memory while it grows and never again, so after one run of a shape a CUDA graph can be
// captured.
#ifndef QC_OPS_DEVICE_SCRATCH_H_
#define QC_OPS_DEVICE_SCRATCH_H_

#include <cstddef>

#include "ops/op.h"

namespace qc::ops {

// The arena, held by a kernel as long as it lives.
class DeviceAllocator {
 public:
  DeviceAllocator(const OrtApi* api, const OrtKernelInfo* info) : api_(api) {
    check(abi::KernelInfoGetAllocator(api, info, abi::kMemoryDefault, &allocator_));
    if (OrtStatus* status = abi::AllocatorGetInfo(api, allocator_, &memory_)) {
      abi::ReleaseAllocator(api, allocator_);
      throw OrtError(status);
    }
  }
  ~DeviceAllocator() { abi::ReleaseAllocator(api_, allocator_); }
  DeviceAllocator(const DeviceAllocator&) = delete;
  DeviceAllocator& operator=(const DeviceAllocator&) = delete;

  void* take(const OrtKernelContext* context, void* stream, std::size_t bytes) const {
    void* data = nullptr;
    if (stream == nullptr) {
      // ONNX Runtime's scratch buffers need a stream. On CUDA's default one work is in order
      // anyway.
      check(abi::AllocatorAlloc(api_, allocator_, bytes, &data));
    } else {
      check(abi::KernelContext_GetScratchBuffer(api_, context, memory_, bytes, &data));
    }
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }
  void give_back(void* data) const noexcept {
    if (OrtStatus* status = abi::AllocatorFree(api_, allocator_, data)) {
      abi::ReleaseStatus(api_, status);
    }
  }

 private:
  const OrtApi* api_;
  OrtAllocator* allocator_ = nullptr;
  const OrtMemoryInfo* memory_ = nullptr;  // the allocator's
};

class DeviceScratch {
 public:
  DeviceScratch(const DeviceAllocator& allocator, const OrtKernelContext* context, void* stream,
                std::size_t bytes)
      : allocator_(allocator), data_(allocator.take(context, stream, bytes)) {}
  ~DeviceScratch() { allocator_.give_back(data_); }
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;

  void* data() const { return data_; }

 private:
  const DeviceAllocator& allocator_;
  void* data_;
};

}  // namespace qc::ops

#endif  // QC_OPS_DEVICE_SCRATCH_H_
