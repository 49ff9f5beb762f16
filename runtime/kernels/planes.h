// The layout of packed weights, the one place for its numbers; docs/ops.md describes it.
//
//   w = (code - z) * m                      an int8; 8-bit codes are the int8 themselves
//   w = (levels[code] - (z + zero)) * m     in the forms with levels
//
// A matrix is cut into panels of 16 columns, a panel into strips of 32 k. A strip of b-bit codes is
// b blocks of 64 bytes: first the plane of their low bits, then the plane of their high bits. In a
// block dword c belongs to column c, and codes of neighbouring k lie in neighbouring bytes.
#ifndef QC_KERNELS_PLANES_H_
#define QC_KERNELS_PLANES_H_

#include <cstdint>

#include "kernels/inline.h"

namespace qc::kernels {

inline constexpr int kPanel = 16;                   // columns in a panel
inline constexpr int kQuad = 4;                     // bytes of a block that belong to a column
inline constexpr int kBlockBytes = kPanel * kQuad;  // bytes in a block
inline constexpr int kStrip = 32;                   // values of k in a strip
inline constexpr int kQuads = kStrip / kQuad;       // of values of k, in a strip
inline constexpr std::int64_t kMostK = 1 << 17;  // the sum of so many products of int8 is an int32

// Values of k that share a multiple and a zero point: a power of two.
inline constexpr std::int64_t kLeastGroup = 16;
inline constexpr std::int64_t kMostGroup = 256;

QC_INLINE constexpr bool is_group_size(std::int64_t size) {
  return size >= kLeastGroup && size <= kMostGroup && (size & (size - 1)) == 0;
}

// The forms of weights: ROW(letter, bits, ...) for each. In those of W a code is a number, in those
// of T it says which level of a table.
#define QC_EACH_FORM(ROW, ...) \
  ROW(W, 2, __VA_ARGS__)       \
  ROW(W, 3, __VA_ARGS__)       \
  ROW(W, 4, __VA_ARGS__)       \
  ROW(W, 5, __VA_ARGS__)       \
  ROW(W, 6, __VA_ARGS__)       \
  ROW(W, 8, __VA_ARGS__)       \
  ROW(T, 2, __VA_ARGS__)       \
  ROW(T, 3, __VA_ARGS__)       \
  ROW(T, 4, __VA_ARGS__)

// A form as a number: its bits, and this of its letter.
inline constexpr int kFormW = 0, kFormT = 16;
inline constexpr int kForms = 32;  // more than any of them

// What codes stand for in the forms of T.
inline constexpr int kMostLevel = 32;
struct Levels {
  std::uint8_t values[16];  // ascending, at most kMostLevel; as many as there are codes
  std::int32_t zero;        // what zero points count from, 0 .. kMostLevel
};

// What a form makes of a strip.
template <int kNumber>
struct Planes {
  static constexpr int kForm = kNumber;
  static constexpr int kBits = kForm % kFormT;
  static constexpr bool kGrouped = kBits < 8;
  static constexpr bool kHasLevels = kForm >= kFormT;
  static_assert(kBits >= 2 && kBits <= (kHasLevels ? 4 : 8) && kBits != 7, "no such form");
  static constexpr int kLow = kBits >= 8 ? 8 : kBits >= 4 ? 4 : 2;  // bits of the first plane
  static constexpr int kHigh = kBits - kLow;                        // of the second, if any
  static constexpr std::int64_t kStripBytes = std::int64_t{kBits} * kBlockBytes;
  static constexpr int kMask = (1 << kBits) - 1;

  static QC_INLINE std::int64_t strips(std::int64_t k) { return ceil_div(k, kStrip); }

  // Of quad `i` in a plane of `bits` bits: the block that holds it, and its lowest bit in a byte.
  QC_EVERYWHERE static QC_INLINE constexpr int block(int bits, int i) { return i * bits / 8; }
  QC_EVERYWHERE static QC_INLINE constexpr int shift(int bits, int i) { return i * bits % 8; }

  // The code of value `k` of a strip in column `c`; of 8 bits, as an int8.
  QC_EVERYWHERE static QC_INLINE int at(const std::uint8_t* strip, int k, int c) {
    const int i = k / kQuad, byte = c * kQuad + k % kQuad;
    int code = strip[block(kLow, i) * kBlockBytes + byte] >> shift(kLow, i) & ((1 << kLow) - 1);
    if constexpr (kHigh > 0) {
      const std::uint8_t* plane = strip + kLow * kBlockBytes;
      const int high = plane[block(kHigh, i) * kBlockBytes + byte] >> shift(kHigh, i);
      code |= (high & ((1 << kHigh) - 1)) << kLow;
    }
    return kGrouped ? code : static_cast<std::int8_t>(code);
  }

  // The number that a code stands for.
  QC_EVERYWHERE static QC_INLINE int number(int code, [[maybe_unused]] const Levels& levels) {
    if constexpr (kHasLevels) return levels.values[code];
    return code;
  }

  // What a group's byte says: b bits of zero point, 8 - b bits of multiple less one.
  QC_EVERYWHERE static QC_INLINE int zero_point(int byte, [[maybe_unused]] const Levels& levels) {
    if constexpr (kHasLevels) return (byte & kMask) + levels.zero;
    return byte & kMask;
  }
  QC_EVERYWHERE static QC_INLINE constexpr int multiple(int byte) { return (byte >> kBits) + 1; }
};

// body(Planes<form>) for a form that only the run knows.
template <typename Body>
QC_INLINE auto with_planes(int form, Body body) {
#define QC_FORM(letter, bits, ...) \
  if (form == kForm##letter + bits) return body(Planes<kForm##letter + bits>{});
  QC_EACH_FORM(QC_FORM)
#undef QC_FORM
  return body(Planes<kFormW + 8>{});
}

}  // namespace qc::kernels

#endif  // QC_KERNELS_PLANES_H_
