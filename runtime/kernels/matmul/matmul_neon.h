// What the NEON matrix kernels share. Internal linkage throughout: see matmul_avx512vnni.cc.
//
// All take k in steps of 8, whose codes are two registers for four columns: one of k .. k+3 and one
// of k+4 .. k+7. Eight bits store them as two blocks, of which the last one of K may be missing.
#ifndef QC_KERNELS_MATMUL_MATMUL_NEON_H_
#define QC_KERNELS_MATMUL_MATMUL_NEON_H_

#include <arm_neon.h>

#include <cstdint>

#include "kernels/matmul/matmul.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kStep = 8;
constexpr int kLanes = 4;                  // columns in a register of int32 or float
constexpr int kVectors = kPanel / kLanes;  // registers for a panel
constexpr int kPrefetchBytes = 1024;       // hides the latency of L2 where few rows share weights

struct Quads {
  uint8x16_t low, high;
};

// Where the codes of a step lie. `half` is set where only the first four k exist: the high quads
// repeat the low ones then, and meet activations of 0.
template <int kBits>
inline Quads load_quads(const std::uint8_t* codes, bool half) {
  const uint8x16_t first = vld1q_u8(codes);
  if (kBits == 4) return {vandq_u8(first, vdupq_n_u8(15)), vshrq_n_u8(first, 4)};
  return {first, half ? first : vld1q_u8(codes + kBlockBytes)};
}

// Eight codes of activations, or four and zeros.
inline int8x8_t load_row(const std::int8_t* q, bool half) {
  if (!half) return vld1_s8(q);
  std::uint32_t quad;
  __builtin_memcpy(&quad, q, sizeof quad);
  return vcreate_s8(quad);
}

// The shape of a packed matrix in blocks.
template <int kBits>
struct Extent {
  static constexpr int kDepth = 32 / kBits;
  static constexpr int kStepBytes = kBlockBytes * kStep / kDepth;

  explicit Extent(const Weights& w)
      : blocks((w.k + kDepth - 1) / kDepth),
        groups((w.k + w.group_size - 1) / w.group_size),
        panel_bytes(blocks * kBlockBytes),
        values(blocks * kDepth),
        group_size(w.group_size) {}

  // The values of k in group g, those that pad the last block included.
  int64_t depth(int64_t g) const {
    const int64_t left = values - g * group_size;
    return left < group_size ? left : group_size;
  }

  int64_t blocks, groups, panel_bytes, values, group_size;
};

inline float32x4_t load_scales(const std::uint16_t* scales) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales)));
}

inline int32x4_t load_zero_points(const std::uint8_t* zero_points) {
  std::uint32_t four;
  __builtin_memcpy(&four, zero_points, sizeof four);
  const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
}

// Four results of a row: those of columns from `column_end` on are not written.
inline void store(const Activations& a, const Weights& w, const Tile& t, int64_t row,
                  int64_t column, float32x4_t sum) {
  const int64_t columns = t.column_end - column;
  if (columns <= 0) return;
  const std::size_t bytes =
      static_cast<std::size_t>(columns < kLanes ? columns : kLanes) * sizeof(float);
  float values[kLanes] = {};
  if (w.bias != nullptr) __builtin_memcpy(values, w.bias + column, bytes);
  const float row_scale = a.scale_count == 1 ? a.scales[row] : 1.0f;
  vst1q_f32(values, vfmaq_n_f32(vld1q_f32(values), sum, row_scale));
  float* out = t.out + (row - t.row_begin) * t.out_stride + column - t.panel_begin * kPanel;
  __builtin_memcpy(out, values, bytes);
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_MATMUL_MATMUL_NEON_H_
