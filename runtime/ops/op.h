// What all ops share: errors, attributes, tensors, and the table of callbacks ONNX Runtime asks
// for.
//
// Inside the library errors are exceptions; `guarded` turns them into an OrtStatus at the border,
// so none crosses it.
#ifndef QC_OPS_OP_H_
#define QC_OPS_OP_H_

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi/ort_abi.h"
#include "kernels/sanitize.h"

namespace qc::kernels {
struct KernelTable;
}

namespace qc::ops {

// A node, tensor or value that can't be accepted; the text says which and why.
class OpError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A failure that ONNX Runtime reported; owns its status.
class OrtError : public std::exception {
 public:
  explicit OrtError(OrtStatus* status) : status(status) {}
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status != nullptr) throw OrtError(status);
}

template <typename Body>
OrtStatus* guarded(const OrtApi* api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const OrtError& error) {
    return error.status;
  } catch (const OpError& error) {
    return abi::CreateStatus(api, abi::kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return abi::CreateStatus(api, abi::kFail, "ai.qcompiler: out of memory");
  } catch (const std::exception& error) {
    return abi::CreateStatus(api, abi::kFail, error.what());
  }
}

using Shape = std::vector<std::int64_t>;

std::string to_string(const Shape& shape);

// Element type and dimensions of a tensor.
struct TensorInfo {
  int type;
  Shape shape;
};
TensorInfo info_of(const OrtApi* api, const OrtValue* value);
void* data_of(const OrtApi* api, const OrtValue* value);

// An input of the node that runs, and its output made with a shape: null where the node leaves the
// output out.
const OrtValue* input_of(const OrtApi* api, const OrtKernelContext* context, std::size_t index);
OrtValue* output_of(const OrtApi* api, OrtKernelContext* context, std::size_t index,
                    const Shape& shape);

// A node while its kernel is being created. Errors name the op, the node and the cause.
class Node {
 public:
  Node(const OrtApi* api, const OrtKernelInfo* info, const char* op);

  const std::string& label() const { return label_; }  // "LinearW4A8 node 'layer0'"
  [[noreturn]] void refuse(const std::string& cause) const;

  std::int64_t integer(const char* attribute) const;
  float real(const char* attribute) const;
  std::vector<std::int64_t> integers(const char* attribute) const;

  // The tensor of input `index` where it is a constant, else null.
  const OrtValue* constant(std::size_t index) const;

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
  std::string label_;
};

// One op type with one element type of its first input, as ONNX Runtime sees it.
struct Op : OrtCustomOp {
  const char* name;
  const char* provider;                 // the execution provider whose kernels these are
  const kernels::KernelTable* kernels;  // those of this CPU
  std::vector<int> input_types;
  std::vector<int> output_types;
  std::size_t required_outputs;
};

// An op of the CPU, with every callback set that does not depend on the kernel class.
Op make_op(const char* name, std::vector<int> input_types, std::vector<int> output_types,
           std::size_t required_outputs);

// The row of a family's `forms` that an op was made of, by its name.
template <typename Form, std::size_t kForms>
const Form& form_of(const Form (&forms)[kForms], const Op& op) {
  for (const Form& form : forms) {
    if (form.name == op.name) return form;
  }
  throw OpError(std::string("no kernel for ") + op.name);
}

// What stands for a kernel's creation and for the end of its runs, to the sanitizer of races.
inline void* created(void* kernel) { return kernel; }
inline void* done(void* kernel) { return static_cast<char*>(kernel) + 1; }

// Sets the callbacks that create, run and destroy `Kernel`, a class with
//   Kernel(const OrtApi*, const OrtKernelInfo*, const Op&)   and   void compute(OrtKernelContext*).
// The host creates it before it runs, perhaps in many threads, and destroys it behind all runs.
template <typename Kernel>
void set_kernel(Op& op) {
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi* api, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatus* {
    return guarded(api, [&] {
      *kernel = std::make_unique<Kernel>(api, info, *static_cast<const Op*>(self)).release();
      kernels::releases(created(*kernel));
    });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
    auto* self = static_cast<Kernel*>(kernel);
    kernels::acquires(created(kernel));
    OrtStatus* status = guarded(self->api(), [&] { self->compute(context); });
    kernels::releases(done(kernel));
    return status;
  };
  op.KernelDestroy = [](void* kernel) {
    kernels::acquires(done(kernel));
    delete static_cast<Kernel*>(kernel);
  };
}

// Runs body(index) for 0 <= index < count on the session's threads. It may throw bad_alloc, nothing
// else: no exception must cross a thread of the host.
template <typename Body>
void parallel_for(const OrtApi* api, OrtKernelContext* context, std::size_t count, Body& body) {
  if (count <= 1) {
    if (count == 1) body(0);
    return;
  }
  struct Call {
    Body& body;
    std::atomic<bool> failed{false};
    char begin = 0, end = 0;  // what the tasks come behind, and before
  } call{body};
  const auto run = [](void* user, std::size_t index) {
    auto& mine = *static_cast<Call*>(user);
    kernels::acquires(&mine.begin);
    try {
      mine.body(index);
    } catch (const std::bad_alloc&) {
      mine.failed.store(true, std::memory_order_relaxed);
    }
    kernels::releases(&mine.end);
  };
  kernels::releases(&call.begin);
  check(abi::KernelContext_ParallelFor(api, context, run, count, count, &call));
  kernels::acquires(&call.end);
  if (call.failed.load()) throw std::bad_alloc();
}

// The API the host gave RegisterCustomOps; shape inference gets no other.
void set_host_api(const OrtApi* api);
const OrtApi* host_api();

}  // namespace qc::ops

#endif  // QC_OPS_OP_H_
