#include "ops/plane_inputs.h"

namespace qc::ops {
namespace {

bool has_groups(int form) {
  return kernels::with_planes(form, [](auto planes) { return planes.kGrouped; });
}

}  // namespace

PlaneInputs::PlaneInputs(const OrtApi* api, const Node& node, const MatrixAttributes& matrix,
                         int form, std::size_t first)
    : api_(api),
      label_(node.label()),
      matrix_(matrix),
      form_(form),
      first_(first),
      tensors_(tensors_of(matrix, form)) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const OrtValue* value = node.constant(first + i);
    if (value == nullptr) continue;
    check_shape(tensors_[i], value);
    tensors_[i].checked = true;
  }
}

std::vector<int> PlaneInputs::types(int form) {
  if (!has_groups(form)) return {abi::kUint8, abi::kFloat};
  return {abi::kUint8, abi::kUint8, abi::kFloat};
}

std::vector<PlaneInputs::Tensor> PlaneInputs::tensors_of(const MatrixAttributes& matrix, int form) {
  const Shape codes = kernels::with_planes(form, [&](auto planes) {
    return Shape{matrix.panels(), planes.strips(matrix.k), planes.kStripBytes};
  });
  std::vector<Tensor> tensors{{"W", codes, false}};
  if (has_groups(form)) {
    tensors.push_back({"groups", {matrix.panels(), matrix.groups(), kernels::kPanel}, false});
  }
  tensors.push_back({"scales", {matrix.n}, false});
  return tensors;
}

kernels::PlaneWeights PlaneInputs::read(const OrtKernelContext* context) const {
  std::vector<const void*> data;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const OrtValue* value = input_of(api_, context, first_ + i);
    if (!tensors_[i].checked) check_shape(tensors_[i], value);
    data.push_back(data_of(api_, value));
  }
  const void* groups = has_groups(form_) ? data[1] : nullptr;
  return {static_cast<const std::uint8_t*>(data.front()),
          static_cast<const std::uint8_t*>(groups),
          static_cast<const float*>(data.back()),
          nullptr,
          matrix_.k,
          matrix_.n,
          matrix_.group_size,
          matrix_.levels};
}

void PlaneInputs::check_shape(const Tensor& tensor, const OrtValue* value) const {
  const Shape shape = info_of(api_, value).shape;
  if (shape == tensor.shape) return;
  std::string sizes = "K=" + std::to_string(matrix_.k) + ", N=" + std::to_string(matrix_.n);
  if (has_groups(form_)) sizes += ", group_size=" + std::to_string(matrix_.group_size);
  throw OpError(label_ + ": " + tensor.name + " has shape " + to_string(shape) + ", expected " +
                to_string(tensor.shape) + " for " + sizes);
}

}  // namespace qc::ops
