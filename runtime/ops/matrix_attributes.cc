#include "ops/matrix_attributes.h"

#include <string>

#include "kernels/planes.h"

namespace qc::ops {
namespace {

constexpr std::int64_t kMaxSide = std::int64_t{1} << 28;
constexpr std::int64_t kMaxWeights = std::int64_t{1} << 40;

void check_layout(const Node& node, std::int64_t known) {
  const std::int64_t layout = node.integer("layout");
  if (layout == known) return;
  node.refuse("layout " + std::to_string(layout) +
              " is not known to this version of the op library, which reads layout " +
              std::to_string(known));
}

MatrixAttributes read_sides(const Node& node, std::int64_t most_k) {
  const MatrixAttributes m{node.integer("K"), node.integer("N"), 0};
  if (m.k < 1 || m.k > most_k) {
    node.refuse("K=" + std::to_string(m.k) + " is out of range 1 .. " + std::to_string(most_k));
  }
  if (m.n < 1 || m.n > kMaxSide) {
    node.refuse("N=" + std::to_string(m.n) + " is out of range 1 .. " + std::to_string(kMaxSide));
  }
  if (m.k > kMaxWeights / m.n) {
    node.refuse("K=" + std::to_string(m.k) + " times N=" + std::to_string(m.n) +
                " is out of range");
  }
  return m;
}

}  // namespace

MatrixAttributes read_layout_1(const Node& node) {
  check_layout(node, 1);
  MatrixAttributes m = read_sides(node, kMaxSide);
  m.group_size = node.integer("group_size");
  if (!kernels::is_group_size(m.group_size)) {
    node.refuse("group_size=" + std::to_string(m.group_size) + " is not 32, 64, 128 or 256");
  }
  return m;
}

MatrixAttributes read_layout_2(const Node& node, int bits) {
  check_layout(node, 2);
  MatrixAttributes m = read_sides(node, kernels::kMostK);
  m.group_size = m.k;
  if (bits == kernels::kMostBits) return m;
  m.group_size = node.integer("group_size");
  if (!kernels::is_plane_group(m.group_size)) {
    node.refuse("group_size=" + std::to_string(m.group_size) + " is not 16, 32, 64, 128 or 256");
  }
  return m;
}

}  // namespace qc::ops
