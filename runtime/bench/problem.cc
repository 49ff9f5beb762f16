#include "bench/problem.h"

#include <algorithm>
#include <random>

namespace qc::bench {
namespace {

using kernels::ceil_div;
using kernels::kPanel;

constexpr std::uint16_t kScale = 0x1c00;  // 2^-8 in float16

std::size_t code_bytes(const Shape& s) {
  const std::int64_t blocks =
      kernels::with_width(s.bits, [&](auto codes) { return codes.blocks(s.k); });
  return static_cast<std::size_t>(ceil_div(s.n, kPanel) * blocks * kernels::kBlockBytes);
}

std::size_t scale_count(const Shape& s) {
  return static_cast<std::size_t>(ceil_div(s.n, kPanel) * ceil_div(s.k, s.group_size) * kPanel);
}

int middle_code(int bits) {
  return kernels::with_width(bits, [](auto codes) { return codes.kMiddle; });
}

// Random bytes; what lies beyond the first megabyte repeats it, because that is quicker.
void fill(std::vector<std::uint8_t>& bytes) {
  constexpr std::size_t kRandom = 1 << 20;
  std::mt19937 random(0);
  const std::size_t count = std::min(bytes.size(), kRandom);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::uint8_t>(random());
  for (std::size_t i = count; i < bytes.size(); i += count) {
    std::copy_n(bytes.begin(), std::min(count, bytes.size() - i), &bytes[i]);
  }
}

}  // namespace

std::size_t weight_bytes(const Shape& shape) {
  return code_bytes(shape) + scale_count(shape) * sizeof(std::uint16_t);
}

Problem::Problem(const kernels::KernelTable& table, const Shape& shape, std::size_t footprint)
    : shape_(shape),
      matmul_(table.matmul[shape.bits]),
      groups_(ceil_div(shape.k, shape.group_size)),
      stride_(kernels::row_stride(shape.k)),  // as the op lays rows out
      copies_(std::max<std::size_t>(1, ceil_div(static_cast<std::int64_t>(footprint),
                                                static_cast<std::int64_t>(weight_bytes(shape))))) {
  codes_.resize(copies_ * code_bytes(shape));
  fill(codes_);
  scales_.assign(copies_ * scale_count(shape), kScale);
  out_.resize(static_cast<std::size_t>(shape.rows * shape.n));
  quantize(table);
}

void Problem::quantize(const kernels::KernelTable& table) {
  const std::int64_t per_row = shape_.scale_per_group ? groups_ : 1;
  rows_.resize(static_cast<std::size_t>(shape_.rows * stride_) / sizeof(Line));
  row_scales_.resize(static_cast<std::size_t>(shape_.rows * per_row));
  starts_.resize(static_cast<std::size_t>(shape_.rows * groups_));
  std::vector<float> x(static_cast<std::size_t>(shape_.k));
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const std::int64_t block = shape_.scale_per_group ? shape_.group_size : shape_.k;
  for (std::int64_t r = 0; r < shape_.rows; ++r) {
    for (float& value : x) value = normal(random);
    table.quantize({x.data(), shape_.k, block, shape_.group_size, 0.0f, -middle_code(shape_.bits),
                    rows_[0].codes + r * stride_, stride_,
                    &row_scales_[static_cast<std::size_t>(r * per_row)],
                    &starts_[static_cast<std::size_t>(r * groups_)]});
  }
}

void Problem::run(std::size_t index) {
  const std::size_t copy = index % copies_;
  const std::int64_t per_row = shape_.scale_per_group ? groups_ : 1;
  const kernels::Activations a{rows_[0].codes, stride_, row_scales_.data(), per_row,
                               starts_.data()};
  const kernels::Weights w{&codes_[copy * code_bytes(shape_)],
                           &scales_[copy * scale_count(shape_)],
                           nullptr,
                           static_cast<std::uint8_t>(middle_code(shape_.bits)),
                           nullptr,
                           shape_.k,
                           shape_.n,
                           shape_.group_size};
  matmul_(a, w, {0, shape_.rows, 0, w.panels(), shape_.n, out_.data(), shape_.n});
}

}  // namespace qc::bench
