// Layout 1 of packed weights, the one place for its numbers; docs/ops.md describes it.
//
// A matrix is cut into panels of columns, a panel into blocks along k. A block holds a dword for
// each column of its panel, and codes of neighbouring k lie in neighbouring bytes of the dword.
#ifndef QC_KERNELS_LAYOUT_H_
#define QC_KERNELS_LAYOUT_H_

#include <cstdint>

#include "kernels/inline.h"

namespace qc::kernels {

inline constexpr int kPanel = 16;                   // columns in a panel
inline constexpr int kQuad = 4;                     // bytes of a block that belong to a column
inline constexpr int kBlockBytes = kPanel * kQuad;  // bytes in a block

// Values of k that share a scale: a power of two.
inline constexpr std::int64_t kLeastGroup = 32;
inline constexpr std::int64_t kMostGroup = 256;

QC_INLINE constexpr bool is_group_size(std::int64_t size) {
  return size >= kLeastGroup && size <= kMostGroup && (size & (size - 1)) == 0;
}

// Rows of quantized activations can be read up to a multiple of this many codes.
inline constexpr std::int64_t kRowMultiple = 64;

// Codes in a row of them: a line more than K needs, since rows a multiple of 4096 bytes apart would
// fall on the same cache sets.
QC_INLINE constexpr std::int64_t row_stride(std::int64_t k) {
  return ceil_div(k, kRowMultiple) * kRowMultiple + kRowMultiple;
}

// The widths of weights, in bits: ROW(bits, ...) for each.
#define QC_EACH_WIDTH(ROW, ...) ROW(4, __VA_ARGS__) ROW(8, __VA_ARGS__)
inline constexpr int kMostBits = 8;

// What a width makes of a block. A width that does not divide 32 needs a specialization.
template <int kWidth>
struct Codes {
  static_assert(32 % kWidth == 0 && kWidth <= kMostBits, "another layout");
  static constexpr int kBits = kWidth;
  static constexpr int kDepth = 32 / kBits;          // values of k in a block
  static constexpr int kQuads = kDepth / kQuad;      // of values: what each byte dot product takes
  static constexpr int kMiddle = 1 << (kBits - 1);   // the zero point of symmetric weights
  static constexpr int kLargest = (1 << kBits) - 1;  // code

  static QC_INLINE std::int64_t blocks(std::int64_t k) { return ceil_div(k, kDepth); }

  // The first bit of value `i` in its dword: the first quad has the low bits of all bytes.
  QC_EVERYWHERE static QC_INLINE constexpr int shift(int i) {
    return i % kQuad * 8 + i / kQuad * kBits;
  }

  // Value `i` of a dword.
  static QC_INLINE int at(const std::uint8_t* dword, int i) {
    return dword[i % kQuad] >> (i / kQuad * kBits) & kLargest;
  }
};

// body(Codes<bits>) for a width that only the run knows.
template <typename Body>
QC_INLINE auto with_width(int bits, Body body) {
#define QC_WIDTH(width, ...) \
  if (bits == width) return body(Codes<width>{});
  QC_EACH_WIDTH(QC_WIDTH)
#undef QC_WIDTH
  return body(Codes<kMostBits>{});
}

}  // namespace qc::kernels

#endif  // QC_KERNELS_LAYOUT_H_
