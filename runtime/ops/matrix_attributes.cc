#include "ops/matrix_attributes.h"

#include <string>

namespace qc::ops {
namespace {

constexpr std::int64_t kLayout = 2;  // of the weights: the one that kernels/planes.h describes
constexpr std::int64_t kMostN = std::int64_t{1} << 28;
constexpr std::int64_t kMostWeights = std::int64_t{1} << 40;

}  // namespace

MatrixAttributes read_matrix(const Node& node, int bits) {
  const std::int64_t layout = node.integer("layout");
  if (layout != kLayout) {
    node.refuse("layout " + std::to_string(layout) +
                " is not known to this version of the op library, which reads layout " +
                std::to_string(kLayout));
  }
  MatrixAttributes m{node.integer("K"), node.integer("N"), 0};
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
  m.group_size = m.k;
  if (bits == kernels::kMostBits) return m;
  m.group_size = node.integer("group_size");
  if (!kernels::is_group_size(m.group_size)) {
    node.refuse("group_size=" + std::to_string(m.group_size) + " is not 16, 32, 64, 128 or 256");
  }
  return m;
}

}  // namespace qc::ops
