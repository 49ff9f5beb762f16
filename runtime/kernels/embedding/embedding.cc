#include "kernels/embedding/embedding.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace qc::kernels {
namespace {

// Values of k with one group's byte, whatever the group size: half a strip.
constexpr std::int64_t kRun = kLeastGroup;
static_assert(kStrip % kRun == 0, "a run lies in one strip");

template <typename Planes>
void embedding(const PlaneWeights& w, std::int64_t column, float* out) {
  const std::int64_t panel = column / kPanel;
  const int lane = static_cast<int>(column % kPanel);
  const std::uint8_t* strips = w.codes + panel * Planes::strips(w.k) * Planes::kStripBytes;
  float scale;  // which may lie unaligned
  std::memcpy(&scale, w.scales + column, sizeof scale);
  for (std::int64_t k = 0; k < w.k; k += kRun) {
    int zero = 0, multiple = 1;
    if constexpr (Planes::kGrouped) {
      const std::int64_t group = panel * w.group_count() + k / w.group_size;
      const int byte = w.groups[group * kPanel + lane];
      zero = Planes::zero_point(byte, w.levels);
      multiple = Planes::multiple(byte);
    }
    const std::uint8_t* strip = strips + k / kStrip * Planes::kStripBytes;
    const int first = static_cast<int>(k % kStrip);
    const int count = static_cast<int>(std::min(kRun, w.k - k));
    for (int i = 0; i < count; ++i) {
      const int number = Planes::number(Planes::at(strip, first + i, lane), w.levels);
      const int weight = (number - zero) * multiple;
      out[k + i] = static_cast<float>(static_cast<std::int8_t>(weight)) * scale;
    }
  }
}

}  // namespace

void embedding_f32(int form, const PlaneWeights& w, std::int64_t column, float* out) {
  with_planes(form, [&](auto planes) { embedding<decltype(planes)>(w, column, out); });
}

}  // namespace qc::kernels
