// Memory that a product keeps for its thread: too much for small stacks. Internal linkage
// throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_SCRATCH_H_
#define QC_KERNELS_LINEAR_SCRATCH_H_

namespace qc::kernels {
namespace {

// Made when a thread first needs it, and gone with the thread.
template <typename T>
class Owner {
 public:
  Owner() = default;
  ~Owner() { delete value_; }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

  T& get() {
    if (value_ == nullptr) value_ = new T;
    return *value_;
  }

 private:
  T* value_ = nullptr;
};

template <typename T>
T& scratch() {
  thread_local Owner<T> owner;
  return owner.get();
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_SCRATCH_H_
