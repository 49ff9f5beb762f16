// The library's exported symbols: what ONNX Runtime calls, and what tells a user which kernels run.
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string>

#include "abi/ort_abi.h"
#include "kernels/dispatch/dispatch.h"
#include "ops/library.h"
#include "ops/op.h"

namespace qc::ops {
namespace {

constexpr const char* kDomain = "ai.qcompiler";
constexpr const char* kIsaVariable = "QCOMPILER_ISA";

const kernels::KernelTable* choose() {
  return kernels::choose_kernels(kernels::cpu_flags(), std::getenv(kIsaVariable));
}

[[noreturn]] void refuse_isa() {
  std::string runnable;
  const std::uint32_t flags = kernels::cpu_flags();
  for (auto* table = kernels::kernel_tables(); *table != nullptr; ++table) {
    if (((*table)->needs & ~flags) != 0) continue;
    runnable += (runnable.empty() ? "" : ", ") + std::string((*table)->isa);
  }
  throw OpError(std::string(kIsaVariable) + "=" + std::getenv(kIsaVariable) +
                " names no kernels that run on this CPU; those that do are: " + runnable);
}

// Made once, and never destroyed: sessions hold pointers to the ops until the process ends.
OrtCustomOpDomain* make_domain(const OrtApi* api, const kernels::KernelTable& kernels) {
  auto* ops = new std::deque<Op>;
  add_ops(*ops);
  for (Op& op : *ops) op.kernels = &kernels;
  OrtCustomOpDomain* domain = nullptr;
  check(abi::CreateCustomOpDomain(api, kDomain, &domain));
  for (const Op& op : *ops) check(abi::CustomOpDomain_Add(api, domain, &op));
  return domain;
}

}  // namespace
}  // namespace qc::ops

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace qc::ops;
  const OrtApi* api = base->GetApi(qc::abi::kApiVersion);
  if (api == nullptr) {
    const OrtApi* oldest = base->GetApi(1);
    const std::string text = std::string(
                                 "the ai.qcompiler op library needs ONNX Runtime 1.18 or "
                                 "later, this is ") +
                             base->GetVersionString();
    return qc::abi::CreateStatus(oldest, qc::abi::kFail, text.c_str());
  }
  return guarded(api, [&] {
    static std::mutex mutex;
    static OrtCustomOpDomain* domain = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (domain == nullptr) {
      const auto* kernels = choose();
      if (kernels == nullptr) refuse_isa();
      set_host_api(api);
      domain = make_domain(api, *kernels);
    }
    qc::ops::check(qc::abi::AddCustomOpDomain(api, options, domain));
  });
}

// The kernels chosen for this CPU, or null where the environment forces some that can't run on it.
extern "C" __attribute__((visibility("default"))) const char* qcompiler_isa() {
  const auto* kernels = qc::ops::choose();
  return kernels != nullptr ? kernels->isa : nullptr;
}
