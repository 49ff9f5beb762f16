#include "ops/matrix_attributes.h"

#include <algorithm>
#include <string>
#include <vector>

namespace qc::ops {
namespace {

constexpr std::int64_t kLayout = 2;  // of the weights: the one that kernels/planes.h describes
constexpr std::int64_t kMostN = std::int64_t{1} << 28;
constexpr std::int64_t kMostWeights = std::int64_t{1} << 40;

kernels::Levels read_levels(const Node& node, std::size_t codes) {
  const std::vector<std::int64_t> values = node.integers("levels");
  if (values.size() != codes) {
    node.refuse("levels has " + std::to_string(values.size()) + " values, expected " +
                std::to_string(codes));
  }
  if (values.front() < 0 || values.back() > kernels::kMostLevel ||
      !std::is_sorted(values.begin(), values.end())) {
    node.refuse("levels=" + to_string(values) + " must ascend within 0 .. " +
                std::to_string(kernels::kMostLevel));
  }
  const std::int64_t zero = node.integer("zero");
  if (zero < 0 || zero > kernels::kMostLevel) {
    node.refuse("zero=" + std::to_string(zero) + " is out of range 0 .. " +
                std::to_string(kernels::kMostLevel));
  }
  kernels::Levels levels{};
  std::copy(values.begin(), values.end(), levels.values);
  levels.zero = static_cast<std::int32_t>(zero);
  return levels;
}

}  // namespace

MatrixAttributes read_matrix(const Node& node, int form) {
  const std::int64_t layout = node.integer("layout");
  if (layout != kLayout) {
    node.refuse("layout " + std::to_string(layout) +
                " is not known to this version of the op library, which reads layout " +
                std::to_string(kLayout));
  }
  MatrixAttributes m{node.integer("K"), node.integer("N"), 0, {}};
  if (m.k < 1 || m.k > kernels::kMostK) {
    node.refuse("K=" + std::to_string(m.k) + " is out of range 1 .. " +
                std::to_string(kernels::kMostK));
  }
  if (m.n < 1 || m.n > kMostN) {
    node.refuse("N=" + std::to_string(m.n) + " is out of range 1 .. " + std::to_string(kMostN));
  }
  if (m.k > kMostWeights / m.n) {
    node.refuse("K=" + std::to_string(m.k) + " times N=" + std::to_string(m.n) +
                " is out of range");
  }
  kernels::with_planes(form, [&](auto planes) {
    m.group_size = planes.kGrouped ? node.integer("group_size") : m.k;
    if (planes.kGrouped && !kernels::is_group_size(m.group_size)) {
      node.refuse("group_size=" + std::to_string(m.group_size) + " is not 16, 32, 64, 128 or 256");
    }
    if (planes.kHasLevels) m.levels = read_levels(node, std::size_t{1} << planes.kBits);
  });
  return m;
}

}  // namespace qc::ops
