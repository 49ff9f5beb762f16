// From packed codes to int8 weights, over one of the classes of bytes. Internal linkage throughout:
// see linear_avx512vnni.cc.
#ifndef QC_KERNELS_LINEAR_EXPAND_H_
#define QC_KERNELS_LINEAR_EXPAND_H_

#include <cstdint>

#include "kernels/linear/linear.h"

namespace qc::kernels {
namespace {

using std::int64_t;

// What is expanded at a time, so that all of it stays in L1: values of k, and panels.
constexpr int64_t kChunk = 256;
constexpr int64_t kPanels = 4;

// kCount bits of a byte from kFrom on.
constexpr int mask(int count, int from) { return ((1 << count) - 1) << from; }

// Every byte shifted to the left; what its neighbours shift into it is left to a mask.
template <typename Bytes, int kLeft>
QC_INLINE typename Bytes::Reg moved(typename Bytes::Reg x) {
  if constexpr (kLeft < 0) {
    return Bytes::template right<-kLeft>(x);
  } else if constexpr (kLeft > 0) {
    return Bytes::template left<kLeft>(x);
  } else {
    return x;
  }
}

// The bits [kFrom, kFrom + kCount) of every byte, moved to kTo.
template <typename Bytes, int kFrom, int kCount, int kTo>
QC_INLINE typename Bytes::Reg field(typename Bytes::Reg x) {
  if constexpr (kCount == 8) return x;
  return Bytes::and_(moved<Bytes, kTo - kFrom>(x), Bytes::all(mask(kCount, kTo)));
}

// The codes of quad kQuadIndex of a strip, of the columns of one register, moved to bit kTo.
template <typename Bytes, int kForm, int kQuadIndex, int kTo = 0>
QC_INLINE typename Bytes::Reg quad_codes(const std::uint8_t* strip) {
  using P = Planes<kForm>;
  constexpr int kLowBlock = P::block(P::kLow, kQuadIndex);
  constexpr int kLowShift = P::shift(P::kLow, kQuadIndex);
  const auto low = Bytes::load(strip + kLowBlock * kBlockBytes);
  if constexpr (P::kHigh == 0) {
    return field<Bytes, kLowShift, P::kLow, kTo>(low);
  } else {
    constexpr int kHighBlock = P::kLow + P::block(P::kHigh, kQuadIndex);
    constexpr int kHighShift = P::shift(P::kHigh, kQuadIndex);
    const auto high = Bytes::load(strip + kHighBlock * kBlockBytes);
    return Bytes::template both<mask(P::kLow, kTo), mask(P::kHigh, kTo + P::kLow)>(
        moved<Bytes, kTo - kLowShift>(low), moved<Bytes, kTo + P::kLow - kHighShift>(high));
  }
}

// body(Constant<i>) for i of kBegin .. kEnd - 1, unrolled.
template <int kBegin, int kEnd, typename Body>
QC_INLINE void each_quad(Body body) {
  if constexpr (kBegin < kEnd) {
    body(Constant<kBegin>{});
    each_quad<kBegin + 1, kEnd>(body);
  }
}

// The numbers that codes and zero points stand for: themselves.
template <typename Bytes, int kForm, bool kHasLevels = Planes<kForm>::kHasLevels>
struct Numbers {
  using Reg = typename Bytes::Reg;

  explicit QC_INLINE Numbers(const PlaneWeights&) {}

  // Those of quad kIndex of a strip, of the columns of one register.
  template <int kIndex>
  static QC_INLINE Reg quad(const std::uint8_t* strip) {
    return quad_codes<Bytes, kForm, kIndex>(strip);
  }
  static QC_INLINE Reg zero_points(Reg values) { return values; }
};

// Levels, and what zero points count from.
template <typename Bytes, int kForm>
struct Numbers<Bytes, kForm, true> {
  using Reg = typename Bytes::Reg;

  explicit QC_INLINE Numbers(const PlaneWeights& w) : zero(Bytes::Lanes::set_ints(w.levels.zero)) {
    levels[0] = Bytes::table(w.levels.values);
    if constexpr (kTwoCodes) {
      static constexpr std::uint8_t kFirst[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
      static constexpr std::uint8_t kSecond[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
      levels[1] = Bytes::look_up(levels[0], Bytes::table(kSecond));
      levels[0] = Bytes::look_up(levels[0], Bytes::table(kFirst));
    }
  }

  template <int kIndex>
  QC_INLINE Reg quad(const std::uint8_t* strip) const {
    if constexpr (kTwoCodes) {
      using P = Planes<kForm>;
      constexpr int kBlock = P::block(P::kLow, kIndex), kShift = P::shift(P::kLow, kIndex);
      const auto both =
          field<Bytes, kShift / 4 * 4, 4, 0>(Bytes::load(strip + kBlock * kBlockBytes));
      return Bytes::look_up(levels[kShift % 4 / 2], both);
    } else {
      return Bytes::look_up(levels[0], quad_codes<Bytes, kForm, kIndex>(strip));
    }
  }
  QC_INLINE Reg zero_points(Reg values) const { return Bytes::Lanes::add_ints(values, zero); }

 private:
  // Of two bits a look-up takes four, the codes of two quads: the level of the lower one, or of the
  // upper. So both need one shift and one mask.
  static constexpr bool kTwoCodes = Planes<kForm>::kBits == 2;

  Reg levels[kTwoCodes ? 2 : 1];
  Reg zero;
};

// What the bytes of a group say, for the columns of one register: as 32-bit integers.
template <typename Bytes, int kForm>
struct Factors {
  using P = Planes<kForm>;
  typename Bytes::Reg zero_points, multiples;

  QC_INLINE Factors(const std::uint8_t* bytes, const Numbers<Bytes, kForm>& numbers) {
    const auto wide = Bytes::Lanes::load_bytes(bytes);
    zero_points = numbers.zero_points(Bytes::and_(wide, Bytes::Lanes::set_ints(P::kMask)));
    multiples = Bytes::Lanes::add_ints(Bytes::template right_ints<P::kBits>(wide),
                                       Bytes::Lanes::set_ints(1));
  }
};

// Quads [kBegin, kEnd) of a strip as int8 weights plus kOffset, 64 bytes a quad and panel.
// 16-bit products serve two bytes, since a number times its multiple stays below 256.
template <typename Bytes, int kForm, int kOffset, int kBegin, int kEnd>
QC_INLINE void expand_quads(const std::uint8_t* strip, const Numbers<Bytes, kForm>& numbers,
                            const Factors<Bytes, kForm>& factors, std::uint8_t* to) {
  const auto multiples = Bytes::spread_words(factors.multiples);
  auto zeros = Bytes::times(factors.zero_points, factors.multiples);
  if constexpr (Planes<kForm>::kHasLevels) {
    // Zero points may lie beyond all levels, and their products beyond a byte.
    zeros = Bytes::and_(zeros, Bytes::Lanes::set_ints(255));
  }
  const auto less = Bytes::sub(Bytes::spread_bytes(zeros), Bytes::all(kOffset));
  each_quad<kBegin, kEnd>([&](auto quad) {
    constexpr int kIndex = decltype(quad)::kValue;
    const auto values = numbers.template quad<kIndex>(strip);
    Bytes::store(to + kIndex * kBlockBytes, Bytes::sub(Bytes::times(values, multiples), less));
  });
}

// Strips [first, last) of a panel as int8 weights plus kOffset: 512 bytes a strip.
template <typename Bytes, int kForm, int kOffset>
void expand(const PlaneWeights& w, int64_t panel, int64_t first, int64_t last, std::uint8_t* to) {
  using P = Planes<kForm>;
  constexpr int kBytes = kBlockBytes / Bytes::kPerPanel;  // of a block, in a register
  const std::uint8_t* strip = w.codes + (panel * P::strips(w.k) + first) * P::kStripBytes;
  const std::uint8_t* groups = P::kGrouped ? w.groups + panel * w.group_count() * kPanel : nullptr;
  const int64_t last_group = P::kGrouped ? w.group_count() - 1 : 0;
  const int shift = __builtin_ctzll(static_cast<unsigned long long>(w.group_size));
  const Numbers<Bytes, kForm> numbers(w);
  for (int64_t s = first; s < last; ++s, strip += P::kStripBytes, to += kQuads * kBlockBytes) {
    // As far ahead as the strips that come next: those of this panel in the chunk behind this one.
#pragma GCC unroll 8
    for (int b = 0; b < P::kBits; ++b) {
      __builtin_prefetch(strip + (last - first) * P::kStripBytes + b * kBlockBytes);
    }
    for (int part = 0; part < Bytes::kPerPanel; ++part) {
      const std::uint8_t* codes = strip + part * kBytes;
      std::uint8_t* out = to + part * kBytes;
      if constexpr (!P::kGrouped) {
        each_quad<0, kQuads>([&](auto quad) {
          constexpr int kAt = decltype(quad)::kValue * kBlockBytes;
          Bytes::store(out + kAt, Bytes::xor_(Bytes::load(codes + kAt), Bytes::all(kOffset)));
        });
      } else {
        const auto factors = [&](int64_t k) {
          const int64_t g = k >> shift;
          const int64_t at =
              (g < last_group ? g : last_group) * kPanel + part * Bytes::Lanes::kLanes;
          return Factors<Bytes, kForm>(groups + at, numbers);
        };
        if (w.group_size >= kStrip) {
          expand_quads<Bytes, kForm, kOffset, 0, kQuads>(codes, numbers, factors(s * kStrip), out);
        } else {
          constexpr int kHalf = kQuads / 2;
          expand_quads<Bytes, kForm, kOffset, 0, kHalf>(codes, numbers, factors(s * kStrip), out);
          expand_quads<Bytes, kForm, kOffset, kHalf, kQuads>(codes, numbers,
                                                             factors(s * kStrip + kStrip / 2), out);
        }
      }
    }
  }
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_LINEAR_EXPAND_H_
