#include "ops/shape_inference.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "ops/op.h"

namespace qc::ops {
namespace {

constexpr std::int64_t kUnknown = -1;

// The name of one unknown dimension. ONNX Runtime takes a dimension without a name for a number,
// even if that is -1, and dimensions of one name for equal: so each has a name of its own.
std::string unknown_name() {
  static std::atomic<std::uint64_t> count{0};
  return "ai.qcompiler.unknown." + std::to_string(count.fetch_add(1, std::memory_order_relaxed));
}

// A shape as ONNX Runtime takes it. Every unknown dimension has a name, every other the name "".
struct NamedShape {
  Shape dims;
  std::vector<std::string> names;

  void add(std::int64_t dim, std::string name = {}) {
    if (dim < 0 && name.empty()) name = unknown_name();
    dims.push_back(dim < 0 ? kUnknown : dim);
    names.push_back(std::move(name));
  }
  // The last dimension replaced.
  NamedShape with_last(std::int64_t dim) const {
    NamedShape result = *this;
    result.dims.pop_back();
    result.names.pop_back();
    result.add(dim);
    return result;
  }
};

// The first input as the graph states it. Its rank is 0 where the graph says nothing.
struct Input {
  int type = abi::kUndefined;
  NamedShape shape;
};

Input first_input(const OrtApi* api, const OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  check(abi::ShapeInferContext_GetInputTypeShape(api, context, 0, &info));
  Input result;
  std::size_t rank = 0;
  check(abi::GetTensorElementType(api, info, &result.type));
  check(abi::GetDimensionsCount(api, info, &rank));
  Shape dims(rank);
  std::vector<const char*> names(rank);
  check(abi::GetDimensions(api, info, dims.data(), rank));
  check(abi::GetSymbolicDimensions(api, info, names.data(), rank));
  for (std::size_t i = 0; i < rank; ++i) result.shape.add(dims[i], names[i]);
  return result;
}

// An attribute's integers; unknown values where it is malformed, which the kernel reports.
std::vector<std::int64_t> read(const OrtApi* api, const OrtShapeInferContext* context,
                               const char* name, abi::AttributeType type, std::size_t count) {
  std::vector<std::int64_t> values(count, kUnknown);
  const OrtOpAttr* attribute = nullptr;
  std::size_t bytes = 0;
  const std::size_t size = count * sizeof(std::int64_t);
  OrtStatus* status = abi::ShapeInferContext_GetAttribute(api, context, name, &attribute);
  if (status == nullptr && attribute != nullptr) {
    status = abi::ReadOpAttr(api, attribute, type, values.data(), size, &bytes);
  }
  if (status != nullptr) abi::ReleaseStatus(api, status);
  if (bytes != size) std::fill(values.begin(), values.end(), kUnknown);
  return values;
}

void set_output(const OrtApi* api, const OrtShapeInferContext* context, std::size_t index, int type,
                const NamedShape& shape) {
  std::vector<const char*> names;
  for (const std::string& name : shape.names) names.push_back(name.c_str());
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(abi::CreateTensorTypeAndShapeInfo(api, &raw));
  const auto release = [api](OrtTensorTypeAndShapeInfo* info) {
    abi::ReleaseTensorTypeAndShapeInfo(api, info);
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw, release);
  check(abi::SetTensorElementType(api, raw, type));
  check(abi::SetDimensions(api, raw, shape.dims.data(), shape.dims.size()));
  check(abi::SetSymbolicDimensions(api, raw, names.data(), names.size()));
  check(abi::ShapeInferContext_SetOutputTypeShape(api, context, index, raw));
}

// The first `count` outputs look like the first input.
OrtStatus* infer_first(OrtShapeInferContext* context, std::size_t count) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    const Input x = first_input(api, context);
    if (x.shape.dims.empty()) return;
    for (std::size_t i = 0; i < count; ++i) set_output(api, context, i, x.type, x.shape);
  });
}

}  // namespace

OrtStatus* infer_linear(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    const Input x = first_input(api, context);
    if (x.shape.dims.empty()) return;
    const auto splits = read(api, context, "splits", abi::kInts, 3);
    for (std::size_t i = 0; i < splits.size(); ++i) {
      if (i > 0 && splits[i] == 0) continue;
      set_output(api, context, i, x.type, x.shape.with_last(splits[i]));
    }
  });
}

// Only the first output: what the caches hold after a run depends on values.
OrtStatus* infer_attention(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    const Input x = first_input(api, context);
    const std::int64_t heads = read(api, context, "num_heads", abi::kInt, 1)[0];
    const std::int64_t kv_heads = read(api, context, "kv_num_heads", abi::kInt, 1)[0];
    if (x.shape.dims.size() != 3 || heads < 1 || kv_heads < 1 || heads > INT32_MAX) return;
    const std::int64_t parts = heads + 2 * std::min<std::int64_t>(kv_heads, heads);
    const std::int64_t all = x.shape.dims.back();
    const std::int64_t width = all < 0 ? kUnknown : all / parts * heads;
    set_output(api, context, 0, x.type, x.shape.with_last(width));
  });
}

OrtStatus* infer_norm(const OrtCustomOp*, OrtShapeInferContext* context) {
  return infer_first(context, 2);
}

OrtStatus* infer_same(const OrtCustomOp*, OrtShapeInferContext* context) {
  return infer_first(context, 1);
}

OrtStatus* infer_embedding(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    const Input ids = first_input(api, context);
    if (ids.shape.dims.empty()) return;  // unknown, or one id: not to be told apart here
    NamedShape rows = ids.shape;
    rows.add(read(api, context, "K", abi::kInt, 1)[0]);
    set_output(api, context, 0, abi::kFloat, rows);
  });
}

}  // namespace qc::ops
