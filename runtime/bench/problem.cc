#include "bench/problem.h"

#include <algorithm>
#include <random>
#include <vector>

namespace qc::bench {
namespace {

using kernels::ceil_div;
using kernels::kPanel;

constexpr float kScale = 0.00390625f;  // 2^-8
constexpr std::uint8_t kGroup = 1;     // zero point 1, multiple 1: any code is an int8
constexpr kernels::Levels kLevels = {{0, 3, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 32},
                                     3};

std::size_t code_bytes(const Shape& s) {
  const std::int64_t panel = kernels::with_planes(
      s.form, [&](auto planes) { return planes.strips(s.k) * planes.kStripBytes; });
  return static_cast<std::size_t>(ceil_div(s.n, kPanel) * panel);
}

std::size_t group_bytes(const Shape& s) {
  if (!has_groups(s.form)) return 0;
  return static_cast<std::size_t>(ceil_div(s.n, kPanel) * ceil_div(s.k, s.group_size) * kPanel);
}

// Random bytes; what lies beyond the first megabyte repeats it, because that is quicker.
std::vector<std::uint8_t> random_bytes(std::size_t count) {
  constexpr std::size_t kRandom = 1 << 20;
  std::vector<std::uint8_t> bytes(count);
  std::mt19937 random(0);
  const std::size_t first = std::min(count, kRandom);
  for (std::size_t i = 0; i < first; ++i) bytes[i] = static_cast<std::uint8_t>(random());
  for (std::size_t i = first; i < count; i += first) {
    std::copy_n(bytes.begin(), std::min(first, count - i), &bytes[i]);
  }
  return bytes;
}

}  // namespace

bool has_groups(int form) {
  return kernels::with_planes(form, [](auto planes) { return planes.kGrouped; });
}

std::size_t weight_bytes(const Shape& s) {
  return code_bytes(s) + group_bytes(s) + static_cast<std::size_t>(s.n) * sizeof(float);
}

Problem::Problem(const kernels::KernelTable& table, const Shape& shape, std::size_t footprint)
    : shape_(shape),
      linear_(table.linear[shape.form]),
      copies_(std::max<std::size_t>(1, ceil_div(footprint, weight_bytes(shape)))),
      codes_(random_bytes(copies_ * code_bytes(shape))),
      groups_(copies_ * group_bytes(shape), kGroup),
      scales_(copies_ * static_cast<std::size_t>(shape.n), kScale),
      stride_(kernels::row_stride(shape.k)),
      row_codes_(static_cast<std::size_t>(shape.rows * stride_) / sizeof(Line)),
      row_scales_(static_cast<std::size_t>(shape.rows)),
      row_sums_(static_cast<std::size_t>(shape.rows * ceil_div(shape.k, shape.group_size))),
      out_(static_cast<std::size_t>(shape.rows * shape.n)) {
  quantize_rows(table);
}

void Problem::quantize_rows(const kernels::KernelTable& table) {
  const Shape& s = shape_;
  const std::int64_t groups = ceil_div(s.k, s.group_size);
  std::vector<float> x(static_cast<std::size_t>(s.k));
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (std::int64_t r = 0; r < s.rows; ++r) {
    for (float& value : x) value = normal(random);
    table.quantize({x.data(), s.k, s.group_size, 0.0f, row_codes_[0].codes + r * stride_, stride_,
                    &row_scales_[static_cast<std::size_t>(r)],
                    &row_sums_[static_cast<std::size_t>(r * groups)]});
  }
}

void Problem::run(std::size_t index) {
  const Shape& s = shape_;
  const std::size_t copy = index % copies_;
  const kernels::PlaneWeights w{&codes_[copy * code_bytes(s)],
                                groups_.empty() ? nullptr : &groups_[copy * group_bytes(s)],
                                &scales_[copy * static_cast<std::size_t>(s.n)],
                                nullptr,
                                s.k,
                                s.n,
                                s.group_size,
                                kLevels};
  linear_({row_codes_[0].codes, stride_, row_scales_.data(), row_sums_.data()}, w,
          {0, s.rows, 0, w.panels(), s.n, out_.data(), s.n});
}

}  // namespace qc::bench
