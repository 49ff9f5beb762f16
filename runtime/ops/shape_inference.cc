#include "ops/shape_inference.h"

#include <algorithm>
#include <cstdint>

#include "ops/op.h"

namespace qc::ops {
namespace {

constexpr std::int64_t kUnknown = -1;

// The first input as the graph states it. Its rank is 0 where the graph says nothing.
struct InputShape {
  int type = abi::kUndefined;
  Shape dims;
  std::vector<const char*> symbols;  // "" for a dimension without a name
};

InputShape first_input(const OrtApi* api, const OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  check(abi::ShapeInferContext_GetInputTypeShape(api, context, 0, &info));
  InputShape result;
  std::size_t rank = 0;
  check(abi::GetTensorElementType(api, info, &result.type));
  check(abi::GetDimensionsCount(api, info, &rank));
  result.dims.resize(rank);
  result.symbols.resize(rank);
  check(abi::GetDimensions(api, info, result.dims.data(), rank));
  check(abi::GetSymbolicDimensions(api, info, result.symbols.data(), rank));
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
                Shape dims, std::vector<const char*> symbols, std::int64_t last) {
  dims.push_back(last < 0 ? kUnknown : last);
  symbols.push_back("");
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(abi::CreateTensorTypeAndShapeInfo(api, &raw));
  const auto release = [api](OrtTensorTypeAndShapeInfo* info) {
    abi::ReleaseTensorTypeAndShapeInfo(api, info);
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw, release);
  check(abi::SetTensorElementType(api, raw, type));
  check(abi::SetDimensions(api, raw, dims.data(), dims.size()));
  check(abi::SetSymbolicDimensions(api, raw, symbols.data(), symbols.size()));
  check(abi::ShapeInferContext_SetOutputTypeShape(api, context, index, raw));
}

// The first `count` outputs look like the first input.
OrtStatus* infer_first(OrtShapeInferContext* context, std::size_t count) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    InputShape x = first_input(api, context);
    if (x.dims.empty()) return;
    const std::int64_t last = x.dims.back();
    x.dims.pop_back();
    x.symbols.pop_back();
    for (std::size_t i = 0; i < count; ++i) {
      set_output(api, context, i, x.type, x.dims, x.symbols, last);
    }
  });
}

}  // namespace

OrtStatus* infer_matmul(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    InputShape x = first_input(api, context);
    if (x.dims.empty()) return;
    x.dims.pop_back();
    x.symbols.pop_back();
    const auto splits = read(api, context, "splits", abi::kInts, 3);
    for (std::size_t i = 0; i < splits.size(); ++i) {
      if (i > 0 && splits[i] == 0) continue;
      set_output(api, context, i, x.type, x.dims, x.symbols, splits[i]);
    }
  });
}

// Only the first output: what the caches hold after a run depends on values.
OrtStatus* infer_attention(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    InputShape x = first_input(api, context);
    const std::int64_t heads = read(api, context, "num_heads", abi::kInt, 1)[0];
    const std::int64_t kv_heads = read(api, context, "kv_num_heads", abi::kInt, 1)[0];
    if (x.dims.size() != 3 || heads < 1 || kv_heads < 1 || heads > INT32_MAX) return;
    const std::int64_t parts = heads + 2 * std::min<std::int64_t>(kv_heads, heads);
    const std::int64_t width = x.dims.back() < 0 ? kUnknown : x.dims.back() / parts * heads;
    x.dims.pop_back();
    x.symbols.pop_back();
    set_output(api, context, 0, x.type, x.dims, x.symbols, width);
  });
}

OrtStatus* infer_norm(const OrtCustomOp*, OrtShapeInferContext* context) {
  return infer_first(context, 2);
}

OrtStatus* infer_same(const OrtCustomOp*, OrtShapeInferContext* context) {
  return infer_first(context, 1);
}

OrtStatus* infer_gather(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi* api = host_api();
  return guarded(api, [&] {
    const InputShape ids = first_input(api, context);
    if (ids.dims.empty()) return;  // unknown, or one id: not to be told apart here
    const auto k = read(api, context, "K", abi::kInt, 1);
    set_output(api, context, 0, abi::kFloat, ids.dims, ids.symbols, k[0]);
  });
}

}  // namespace qc::ops
