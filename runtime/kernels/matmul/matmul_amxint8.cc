// AMX kernels: the integer part on tiles of 16 x 16 sums, the float part on AVX-512. A tile of
// weights is what layout 1 holds with its nibbles taken apart: rows of 16 columns by 4 values of k.
// Few rows are better off on vpdpbusd, and get the same bits there. Internal linkage throughout:
// see matmul_avx512vnni.cc.
//
// The float part costs as much as the integer part: 32 instructions a group and tile, on the ports
// that tile products take too. Loads of tiles come next; rows of activations that cross cache lines
// would make them three times as slow.
#include <immintrin.h>

#include <cstdint>

#include "kernels/linear/scratch.h"
#include "kernels/linear/tiles_of_others.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/whole_panel.h"
#include "kernels/simd/avx512.h"

namespace qc::kernels {
namespace {

using std::int64_t;

constexpr int kTileRows = 16;       // rows of activations in a tile
constexpr int64_t kTileBytes = 64;  // in a row of a tile, at most
constexpr int64_t kChunk = 512;     // values of k whose weights are unpacked at a time,
constexpr int64_t kWholeK = 768;    // unless K is no more than this
constexpr int64_t kGroups = kWholeK / kLeastGroup;  // groups in a chunk, at most
constexpr int64_t kPanels = 2;                      // panels unpacked at a time
constexpr int64_t kWidePanels = 16;                 // panels summed before they are written
constexpr int64_t kRowTiles = 8;                    // tiles of rows that use unpacked weights

// Is another tile worth its time for so many rows? It is sooner where others share the weights.
bool are_few(int64_t rows, bool alone, int64_t group_size) {
  if (group_size == kLeastGroup) return rows < (alone ? 10 : 6);
  return rows < (alone ? 7 : 2);
}

// What a product keeps in the caches of its thread: too much for small stacks.
struct alignas(64) Scratch {
  std::uint8_t codes[kPanels][kWholeK * kPanel];  // tiles of unpacked weights
  float scales[kPanels][kGroups][kPanel];
  float zero_points[kPanels][kGroups][kPanel];
  float starts[kRowTiles][kGroups][kTileRows];
  float row_scales[kRowTiles][kGroups][kTileRows];
  float sums[kRowTiles * kTileRows][kWidePanels][kPanel];
  std::int32_t dots[2][kTileRows][kPanel];  // of which a short tile leaves some as they are
};

int64_t depth_of_tile(int64_t group_size) {
  return group_size < kTileBytes ? group_size : kTileBytes;
}

// Registers 0 and 1 hold sums, 2 activations, 3 weights.
void configure(int64_t rows, int64_t group_size) {
  const int64_t depth = depth_of_tile(group_size);
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 4; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(rows);
    config.row_bytes[i] = kTileBytes;
  }
  config.row_bytes[2] = static_cast<std::uint16_t>(depth);
  config.rows[3] = static_cast<std::uint8_t>(depth / 4);
  load(config);
}

// A part of the K x N matrix: groups [first_group, last_group) of a few panels.
struct Chunk {
  int64_t panel, panels;
  int64_t slot;  // where its sums begin
  int64_t first_group, last_group;
  int64_t tiles;  // in the last group

  int64_t groups() const { return last_group - first_group; }
  // Groups come in twos. An odd number is made up by an empty one, with scales of 0.
  int64_t even_groups() const { return groups() + (groups() & 1); }
};

QC_INLINE __m128i zero_points_of(const Weights& w, int64_t at) {
  return w.zero_points == nullptr
             ? _mm_set1_epi8(static_cast<char>(w.zero_point))
             : _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero_points + at));
}

// Takes `count` blocks of codes apart, less their zero points where kSigned; returns the end of
// what it wrote.
template <int kBits, bool kSigned>
QC_INLINE std::uint8_t* unpack_blocks(const std::uint8_t* from, int64_t count, __m128i zero_points,
                                      std::uint8_t* to) {
  // A column's zero point in each byte of its dword.
  const __m512i zero =
      _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zero_points), _mm512_set1_epi32(0x01010101));
  for (int64_t b = 0; b < count; ++b, from += kBlockBytes) {
    // The next chunk.
    _mm_prefetch(reinterpret_cast<const char*>(from + kChunk * kBits * 2), _MM_HINT_T1);
    const __m512i packed = _mm512_loadu_si512(from);
#pragma GCC unroll 8
    for (int i = 0; i < Codes<kBits>::kQuads; ++i, to += kBlockBytes) {
      const __m512i codes = unpack<kBits>(packed, i);
      _mm512_store_si512(to, kSigned ? _mm512_sub_epi8(codes, zero) : codes);
    }
  }
  return to;
}

// Takes the codes of a chunk apart, less their zero points where kSigned: such weights are int8,
// and a group needs no start.
template <int kBits, bool kSigned>
void unpack_chunk(const Weights& w, const Chunk& c, Scratch& s) {
  const int64_t blocks = Codes<kBits>::blocks(w.k);
  const int64_t blocks_per_group = w.group_size / Codes<kBits>::kDepth;
  const int64_t first_block = c.first_group * blocks_per_group;
  for (int64_t p = 0; p < c.panels; ++p) {
    std::uint8_t* to = s.codes[p];
    for (int64_t g = 0; g < c.groups(); ++g) {
      const int64_t at = ((c.panel + p) * w.groups() + c.first_group + g) * kPanel;
      const __m128i zero_points = zero_points_of(w, at);
      const int64_t block = first_block + g * blocks_per_group, left = blocks - block;
      const std::uint8_t* from = w.codes + ((c.panel + p) * blocks + block) * kBlockBytes;
      to = unpack_blocks<kBits, kSigned>(from, left < blocks_per_group ? left : blocks_per_group,
                                         zero_points, to);
      _mm512_store_ps(s.scales[p][g], Avx512::widen(w.scales + at));
      if (kSigned) continue;
      _mm512_store_ps(s.zero_points[p][g],
                      w.zero_points == nullptr
                          ? _mm512_set1_ps(1.0f)
                          : _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zero_points)));
    }
    if (c.groups() < c.even_groups()) {
      _mm512_store_ps(s.scales[p][c.groups()], _mm512_setzero_ps());
      _mm512_store_ps(s.zero_points[p][c.groups()], _mm512_setzero_ps());
    }
    // Nothing is added past K, whatever the activations hold there.
    const int64_t values = (c.groups() - 1) * w.group_size + c.tiles * depth_of_tile(w.group_size);
    const std::uint8_t* end = s.codes[p] + values * kPanel;
    for (; to < end; to += kBlockBytes) _mm512_store_si512(to, _mm512_setzero_si512());
  }
}

// Rows [begin, end). The last tile ends with them, and may share rows with the one before.
struct Rows {
  int64_t begin, end;

  int64_t of_tile() const { return end - begin < kTileRows ? end - begin : kTileRows; }
  int64_t tiles() const { return (end - begin + kTileRows - 1) / kTileRows; }
  int64_t first_of(int64_t tile) const {
    return tile + 1 < tiles() ? begin + tile * kTileRows : end - of_tile();
  }
};

// The factors of a tile's rows, group by group; 0 for rows and groups that are not there.
void widen_rows(const Activations& a, int64_t groups, const Chunk& c, const Rows& rows,
                int64_t tile, Scratch& s) {
  const int64_t first_row = rows.first_of(tile);
  for (int64_t g = 0; g < c.even_groups(); ++g) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const bool there = g < c.groups() && r < rows.of_tile();
      const int64_t at = there ? (first_row + r) * groups + c.first_group + g : 0;
      s.starts[tile][g][r] = there ? static_cast<float>(a.starts[at]) : 0.0f;
      s.row_scales[tile][g][r] = there && a.scale_count != 1 ? a.scales[at] : 0.0f;
    }
  }
}

// One step: the integer sums of a group into one register, and those of the group before from the
// other to memory. A macro, because registers of tiles have to be literals.
#define QC_STEP(sum, other, tiles)                  \
  do {                                              \
    _tile_zero(sum);                                \
    for (int64_t i = 0; i < (tiles); ++i) {         \
      _tile_loadd(2, q, stride);                    \
      _tile_loadd(3, codes, kTileBytes);            \
      if (kSigned) {                                \
        _tile_dpbssd(sum, 2, 3);                    \
      } else {                                      \
        _tile_dpbsud(sum, 2, 3);                    \
      }                                             \
      q += depth;                                   \
      codes += depth * kPanel;                      \
    }                                               \
    _tile_stored(other, s.dots[other], kTileBytes); \
  } while (false)

// Scales and adds the sums of a group to those of the groups before.
template <bool kSigned, bool kBlockScales>
QC_INLINE void add_group(const Scratch& s, int64_t tile, int64_t p, int64_t g,
                         __m512 (&sums)[kTileRows]) {
  const __m512 scale = _mm512_load_ps(s.scales[p][g]);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(s.dots[g & 1][r]));
    if (!kSigned) {
      // Exact: all of these are whole numbers below 2^24.
      dot = _mm512_fmadd_ps(_mm512_load_ps(s.zero_points[p][g]),
                            _mm512_set1_ps(s.starts[tile][g][r]), dot);
    }
    const __m512 factor =
        kBlockScales ? _mm512_mul_ps(scale, _mm512_set1_ps(s.row_scales[tile][g][r])) : scale;
    sums[r] = _mm512_fmadd_ps(dot, factor, sums[r]);
  }
}

// What the sums of one tile start with.
QC_INLINE void start(const Chunk& c, int64_t tile, int64_t p, const Scratch& s,
                     __m512 (&sums)[kTileRows]) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    sums[r] = c.first_group == 0 ? _mm512_setzero_ps()
                                 : _mm512_load_ps(s.sums[tile * kTileRows + r][c.slot + p]);
  }
}

// Keeps the sums of one tile.
QC_INLINE void save(const Chunk& c, int64_t tile, int64_t p, const __m512 (&sums)[kTileRows],
                    Scratch& s) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    _mm512_store_ps(s.sums[tile * kTileRows + r][c.slot + p], sums[r]);
  }
}

// All rows times a chunk. Three groups are under way at a time: while one is multiplied, the sums
// of the one before are stored, and those of the one before that are scaled and added.
template <bool kSigned, bool kBlockScales>
void multiply(const Activations& a, const Weights& w, const Chunk& c, const Rows& rows,
              Scratch& s) {
  const int64_t depth = depth_of_tile(w.group_size), stride = a.stride;
  const int64_t groups = c.even_groups();
  // Of the last two groups.
  const int64_t full = w.group_size / depth;
  const int64_t even_tiles = c.groups() < groups ? c.tiles : full;
  const int64_t odd_tiles = c.groups() < groups ? 0 : c.tiles;
  __m512 sums[kTileRows];
  int64_t last_tile = -1, last_p = 0;  // whose sums wait for their last two groups

  for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
    const std::int8_t* row = a.codes + rows.first_of(tile) * stride + c.first_group * w.group_size;
    for (int64_t p = 0; p < c.panels; ++p) {
      const std::int8_t* q = row;
      const std::uint8_t* codes = s.codes[p];
      QC_STEP(0, 1, groups > 2 ? full : even_tiles);
      if (last_tile >= 0) {
        add_group<kSigned, kBlockScales>(s, last_tile, last_p, groups - 2, sums);
      }
      QC_STEP(1, 0, groups > 2 ? full : odd_tiles);
      if (last_tile >= 0) {
        add_group<kSigned, kBlockScales>(s, last_tile, last_p, groups - 1, sums);
        save(c, last_tile, last_p, sums, s);
      }
      start(c, tile, p, s, sums);
      for (int64_t g = 2; g < groups; g += 2) {
        QC_STEP(0, 1, g + 2 < groups ? full : even_tiles);
        add_group<kSigned, kBlockScales>(s, tile, p, g - 2, sums);
        QC_STEP(1, 0, g + 2 < groups ? full : odd_tiles);
        add_group<kSigned, kBlockScales>(s, tile, p, g - 1, sums);
      }
      last_tile = tile;
      last_p = p;
    }
  }
  _tile_stored(1, s.dots[1], kTileBytes);
  add_group<kSigned, kBlockScales>(s, last_tile, last_p, groups - 2, sums);
  add_group<kSigned, kBlockScales>(s, last_tile, last_p, groups - 1, sums);
  save(c, last_tile, last_p, sums, s);
}

// Writes panels [first, last), row by row: memory takes long runs better than many short ones.
void write(const Activations& a, const Weights& w, const Tile& t, const Rows& rows, int64_t first,
           int64_t last, const Scratch& s) {
  for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
    for (int64_t r = 0; r < rows.of_tile(); ++r) {
      const int64_t row = rows.first_of(tile) + r;
      const __m512 row_scale = _mm512_set1_ps(a.scale_count == 1 ? a.scales[row] : 1.0f);
      float* out = t.out + (row - t.row_begin) * t.out_stride - t.panel_begin * kPanel;
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t column = panel * kPanel, left = t.column_end - column;
        const __m512 bias =
            w.bias != nullptr ? Avx512::load(w.bias + column, left) : Avx512::zero();
        const __m512 sums = _mm512_load_ps(s.sums[tile * kTileRows + r][panel - first]);
        Avx512::store(out + column, left, Avx512::fma(sums, row_scale, bias));
      }
    }
  }
}

// Are weights less their zero points int8, in these panels? In 4 bits they are, unless zero points
// are none of 0..15.
template <int kBits>
bool are_int8(const Weights& w, const Tile& t) {
  constexpr int kLargest = Codes<kBits>::kLargest;
  if (w.zero_points == nullptr) {
    return kLargest - w.zero_point <= INT8_MAX && -w.zero_point >= INT8_MIN;
  }
  if (kLargest > INT8_MAX) return false;
  const std::uint8_t* from = w.zero_points + t.panel_begin * w.groups() * kPanel;
  const int64_t count = (t.panel_end - t.panel_begin) * w.groups();
  __m128i all = _mm_setzero_si128();
  for (int64_t i = 0; i < count; ++i) {
    all = _mm_or_si128(all, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * kPanel)));
  }
  return _mm_movemask_epi8(all) == 0;
}

// Sums of panels [panel, panel + panels) over all of K, into slots from `slot` on.
template <int kBits, bool kSigned, bool kBlockScales>
void sum_panels(const Activations& a, const Weights& w, const Rows& rows, int64_t panel,
                int64_t panels, int64_t slot, Scratch& s) {
  const int64_t depth = depth_of_tile(w.group_size);
  const int64_t groups = w.groups();
  const int64_t step = (w.k <= kWholeK ? kWholeK : kChunk) / w.group_size;
  for (int64_t group = 0; group < groups; group += step) {
    const int64_t last_group = group + step < groups ? group + step : groups;
    const int64_t left = w.k - (last_group - 1) * w.group_size;
    const int64_t values = left < w.group_size ? left : w.group_size;
    const Chunk c{panel, panels, slot, group, last_group, (values + depth - 1) / depth};
    unpack_chunk<kBits, kSigned>(w, c, s);
    if (!kSigned || kBlockScales) {
      for (int64_t tile = 0; tile < rows.tiles(); ++tile) widen_rows(a, groups, c, rows, tile, s);
    }
    __asm__ volatile("" ::: "memory");  // GCC does not know what tileloadd reads
    multiply<kSigned, kBlockScales>(a, w, c, rows, s);
  }
}

template <int kBits, bool kSigned, bool kBlockScales>
void block_of_rows(const Activations& a, const Weights& w, const Tile& t, const Rows& rows,
                   Scratch& s) {
  configure(rows.of_tile(), w.group_size);
  for (int64_t first = t.panel_begin; first < t.panel_end; first += kWidePanels) {
    const int64_t last = first + kWidePanels < t.panel_end ? first + kWidePanels : t.panel_end;
    for (int64_t panel = first; panel < last; panel += kPanels) {
      const int64_t panels = panel + kPanels < last ? kPanels : last - panel;
      sum_panels<kBits, kSigned, kBlockScales>(a, w, rows, panel, panels, panel - first, s);
    }
    write(a, w, t, rows, first, last, s);
  }
}

template <int kBits>
void block_of_rows(const Activations& a, const Weights& w, const Tile& t, const Rows& rows,
                   bool is_signed, Scratch& s) {
  if (is_signed) {
    if (a.scale_count == 1) {
      block_of_rows<kBits, true, false>(a, w, t, rows, s);
    } else {
      block_of_rows<kBits, true, true>(a, w, t, rows, s);
    }
  } else if (a.scale_count == 1) {
    block_of_rows<kBits, false, false>(a, w, t, rows, s);
  } else {
    block_of_rows<kBits, false, true>(a, w, t, rows, s);
  }
}

template <int kBits>
void matmul(const Activations& a, const Weights& w, const Tile& t, MatMul few_rows) {
  const int64_t count = t.row_end - t.row_begin;
  const int64_t rest = count % kTileRows;
  const int64_t on_tiles = are_few(rest, rest == count, w.group_size) ? count - rest : count;
  if (on_tiles > 0) {
    Scratch& s = scratch<Scratch>();
    const TilesOfOthers tiles;
    const bool is_signed = are_int8<kBits>(w, t);
    const int64_t end = t.row_begin + on_tiles;
    for (int64_t row = t.row_begin; row < end; row += kRowTiles * kTileRows) {
      const int64_t stop = row + kRowTiles * kTileRows;
      block_of_rows<kBits>(a, w, t, {row, stop < end ? stop : end}, is_signed, s);
    }
  }
  if (on_tiles < count) {
    Tile last = t;
    last.row_begin = t.row_begin + on_tiles;
    last.out = t.out + on_tiles * t.out_stride;
    few_rows(a, w, last);
  }
}

}  // namespace

#define QC_DEFINE_AMX(bits, ...)                                                                \
  void matmul_s8_u##bits##_f32_amxint8(const Activations& a, const Weights& w, const Tile& t) { \
    matmul<bits>(a, w, t, matmul_s8_u##bits##_f32_avx512vnni);                                  \
  }
QC_EACH_WIDTH(QC_DEFINE_AMX)

}  // namespace qc::kernels
