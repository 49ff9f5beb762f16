#include "ops/packed_inputs.h"

namespace qc::ops {
namespace {

bool is_one_value(const Shape& shape) { return shape == Shape{1, 1, 1}; }

}  // namespace

PackedInputs::PackedInputs(const OrtApi* api, const Node& node, const MatrixAttributes& matrix,
                           int bits, std::size_t first)
    : api_(api), label_(node.label()), matrix_(matrix), bits_(bits), first_(first) {
  for (int which = 0; which < kCount; ++which) {
    const OrtValue* value = node.constant(first + static_cast<std::size_t>(which));
    if (value == nullptr) continue;
    const Shape shape = info_of(api, value).shape;
    check_shape(which, shape);
    constant_[which] = true;
    if (which == kZeroPoints) one_zero_point_ = is_one_value(shape);
  }
}

PackedInputs::Pointers PackedInputs::read(const OrtKernelContext* context) const {
  const void* data[kCount];
  bool one = one_zero_point_;
  for (int which = 0; which < kCount; ++which) {
    const OrtValue* value = nullptr;
    check(abi::KernelContext_GetInput(api_, context, first_ + static_cast<std::size_t>(which),
                                      &value));
    if (!constant_[which]) {
      const Shape shape = info_of(api_, value).shape;
      check_shape(which, shape);
      if (which == kZeroPoints) one = is_one_value(shape);
    }
    data[which] = data_of(api_, value);
  }
  return {static_cast<const std::uint8_t*>(data[kCodes]),
          static_cast<const std::uint16_t*>(data[kScales]),
          static_cast<const std::uint8_t*>(data[kZeroPoints]), one};
}

void PackedInputs::check_shape(int which, const Shape& shape) const {
  static const char* const kNames[kCount] = {"W", "scales", "zero_points"};
  if (which == kZeroPoints && is_one_value(shape)) return;
  const std::int64_t blocks =
      kernels::with_width(bits_, [&](auto codes) { return codes.blocks(matrix_.k); });
  const Shape expected = which == kCodes
                             ? Shape{matrix_.panels(), blocks, kernels::kBlockBytes}
                             : Shape{matrix_.panels(), matrix_.groups(), kernels::kPanel};
  if (shape == expected) return;
  throw OpError(label_ + ": " + kNames[which] + " has shape " + to_string(shape) + ", expected " +
                to_string(expected) + " for K=" + std::to_string(matrix_.k) + ", N=" +
                std::to_string(matrix_.n) + ", group_size=" + std::to_string(matrix_.group_size));
}

}  // namespace qc::ops
