#include "ops/op.h"

#include <climits>
#include <utility>

namespace qc::ops {
namespace {

const OrtApi* g_host_api = nullptr;

const Op& as_op(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

}  // namespace

void set_host_api(const OrtApi* api) { g_host_api = api; }
const OrtApi* host_api() { return g_host_api; }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

TensorInfo info_of(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(abi::GetTensorTypeAndShape(api, value, &raw));
  const auto release = [api](OrtTensorTypeAndShapeInfo* info) {
    abi::ReleaseTensorTypeAndShapeInfo(api, info);
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw, release);
  TensorInfo result{};
  std::size_t rank = 0;
  check(abi::GetTensorElementType(api, info.get(), &result.type));
  check(abi::GetDimensionsCount(api, info.get(), &rank));
  result.shape.resize(rank);
  check(abi::GetDimensions(api, info.get(), result.shape.data(), rank));
  return result;
}

void* data_of(const OrtApi* api, const OrtValue* value) {
  void* data = nullptr;
  check(abi::GetTensorMutableData(api, value, &data));
  return data;
}

const OrtValue* input_of(const OrtApi* api, const OrtKernelContext* context, std::size_t index) {
  const OrtValue* value = nullptr;
  check(abi::KernelContext_GetInput(api, context, index, &value));
  return value;
}

OrtValue* output_of(const OrtApi* api, OrtKernelContext* context, std::size_t index,
                    const Shape& shape) {
  OrtValue* value = nullptr;
  check(abi::KernelContext_GetOutput(api, context, index, shape.data(), shape.size(), &value));
  return value;
}

Node::Node(const OrtApi* api, const OrtKernelInfo* info, const char* op) : api_(api), info_(info) {
  std::size_t size = 0;
  check(abi::KernelInfo_GetNodeName(api, info, nullptr, &size));
  std::string name(size, '\0');
  check(abi::KernelInfo_GetNodeName(api, info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  label_ = std::string(op) + " node '" + name + "'";
}

void Node::refuse(const std::string& cause) const { throw OpError(label_ + ": " + cause); }

std::int64_t Node::integer(const char* attribute) const {
  std::int64_t value = 0;
  if (OrtStatus* status = abi::KernelInfoGetAttribute_int64(api_, info_, attribute, &value)) {
    abi::ReleaseStatus(api_, status);
    refuse(std::string("attribute ") + attribute + " is missing or not an integer");
  }
  return value;
}

float Node::real(const char* attribute) const {
  float value = 0;
  if (OrtStatus* status = abi::KernelInfoGetAttribute_float(api_, info_, attribute, &value)) {
    abi::ReleaseStatus(api_, status);
    refuse(std::string("attribute ") + attribute + " is missing or not a float");
  }
  return value;
}

std::vector<std::int64_t> Node::integers(const char* attribute) const {
  std::size_t count = 0;
  OrtStatus* status =
      abi::KernelInfoGetAttributeArray_int64(api_, info_, attribute, nullptr, &count);
  std::vector<std::int64_t> values(status == nullptr ? count : 0);
  if (status == nullptr && count != 0) {
    status = abi::KernelInfoGetAttributeArray_int64(api_, info_, attribute, values.data(), &count);
  }
  if (status != nullptr) {
    abi::ReleaseStatus(api_, status);
    refuse(std::string("attribute ") + attribute + " is missing or not a list of integers");
  }
  return values;
}

const OrtValue* Node::constant(std::size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(abi::KernelInfoGetConstantInput_tensor(api_, info_, index, &is_constant, &value));
  return is_constant != 0 ? value : nullptr;
}

Op make_op(const char* name, std::vector<int> input_types, std::vector<int> output_types,
           std::size_t required_outputs) {
  Op op{};
  op.version = abi::kApiVersion;
  op.name = name;
  op.provider = "CPUExecutionProvider";
  op.input_types = std::move(input_types);
  op.output_types = std::move(output_types);
  op.required_outputs = required_outputs;
  op.GetName = [](const OrtCustomOp* self) { return as_op(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return as_op(self).provider; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return as_op(self).input_types.size(); };
  op.GetInputType = [](const OrtCustomOp* self, std::size_t i) {
    return as_op(self).input_types[i];
  };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) { return as_op(self).output_types.size(); };
  op.GetOutputType = [](const OrtCustomOp* self, std::size_t i) {
    return as_op(self).output_types[i];
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t) -> int { return abi::kRequired; };
  op.GetOutputCharacteristic = [](const OrtCustomOp* self, std::size_t i) -> int {
    return i < as_op(self).required_outputs ? abi::kRequired : abi::kOptional;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return abi::kMemoryDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
  op.GetMayInplace = [](int**, int**) -> std::size_t { return 0; };
  op.ReleaseMayInplace = [](int*, int*) {};
  op.GetAliasMap = [](int**, int**) -> std::size_t { return 0; };
  op.ReleaseAliasMap = [](int*, int*) {};
  return op;
}

}  // namespace qc::ops
