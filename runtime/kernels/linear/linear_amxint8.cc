// AMX kernels: expanded weights on tiles of 16 x 16 sums. A tile of weights is 16 quads of a panel,
// as they lie there. Few rows are better off on vpdpbusd. Internal linkage throughout: see
// linear_avx512vnni.cc.
#include "kernels/linear/bytes_avx512.h"
#include "kernels/linear/expand.h"
#include "kernels/linear/finish.h"
#include "kernels/linear/scratch.h"

namespace qc::kernels {
namespace {

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  std::uint8_t palette = 0, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// GCC takes ldtilecfg and sttilecfg for accesses of 8 bytes, hence the barriers.
void load(const TileConfig& config) {
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Registers 0 to 3 hold sums and 4 and 5 activations, of so many rows each; 6 and 7 weights.
void configure_tiles(int rows) {
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : 16);
    config.row_bytes[i] = 64;
  }
  load(config);
}

// Leaves the registers to the thread's other users as they had configured them: libraries that do
// so once a thread would fault, or multiply tiles of another size.
class TilesOfOthers {
 public:
  TilesOfOthers() {
    _tile_storeconfig(&config_);
    __asm__ volatile("" : : "r"(&config_) : "memory");
  }
  ~TilesOfOthers() { load(config_); }
  TilesOfOthers(const TilesOfOthers&) = delete;
  TilesOfOthers& operator=(const TilesOfOthers&) = delete;

 private:
  TileConfig config_;
};

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 64;  // in a row of a tile
constexpr int64_t kStep = 64;       // values of k that a tile product takes
constexpr int64_t kRowTiles = 16;   // tiles of rows that use expanded weights
constexpr int64_t kFewRows = 6;     // below, an ISA without tiles is faster

struct alignas(64) Expanded {
  std::uint8_t weights[kPanels][kChunk * kPanel];
  std::int32_t sums[kRowTiles][kPanels][kTileRows][kPanel];
};

// A part of the matrix: panels [panel, panel + panels), strips [first, last).
struct Chunk {
  int64_t panel, panels;
  int64_t first, last;

  int64_t steps() const { return ceil_div((last - first) * kStrip, kStep); }
};

// Rows [begin, end). The last tile ends with them, and may share rows with the one before.
struct RowTiles {
  int64_t begin, end;

  int64_t of_tile() const { return end - begin < kTileRows ? end - begin : kTileRows; }
  int64_t count() const { return ceil_div(end - begin, kTileRows); }
  int64_t first_of(int64_t tile) const {
    return tile + 1 < count() ? begin + tile * kTileRows : end - of_tile();
  }
};

// Expands a panel of a chunk, and zeros up to whole steps: what activations hold beyond K is
// anything there.
template <int kForm>
void expand_panel(const PlaneWeights& w, const Chunk& c, int64_t p, Expanded& s) {
  expand<Bytes512, kForm, 0>(w, c.panel + p, c.first, c.last, s.weights[p]);
  const int64_t end = c.steps() * kStep * kPanel;
  for (int64_t at = (c.last - c.first) * kStrip * kPanel; at < end; at += kBlockBytes) {
    _mm512_store_si512(s.weights[p] + at, _mm512_setzero_si512());
  }
}

// Registers 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.
#define QC_START(sum, memory)             \
  if (c.first == 0) {                     \
    _tile_zero(sum);                      \
  } else {                                \
    _tile_loadd(sum, memory, kTileBytes); \
  }

// Two tiles of rows times two panels.
void two_by_two(const std::int8_t* const (&q)[2], int64_t stride, const Chunk& c, int64_t tile,
                int64_t p, Expanded& s) {
  const std::uint8_t *left = s.weights[p], *right = s.weights[p + 1];
  const std::int8_t *upper = q[0], *lower = q[1];
  QC_START(0, s.sums[tile][p])
  QC_START(1, s.sums[tile][p + 1])
  QC_START(2, s.sums[tile + 1][p])
  QC_START(3, s.sums[tile + 1][p + 1])
  for (int64_t i = c.steps(); i > 0; --i) {
    _tile_loadd(6, left, kTileBytes);
    _tile_loadd(4, upper, stride);
    _tile_loadd(7, right, kTileBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, lower, stride);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
    left += kStep * kPanel;
    right += kStep * kPanel;
    upper += kStep;
    lower += kStep;
  }
  _tile_stored(0, s.sums[tile][p], kTileBytes);
  _tile_stored(1, s.sums[tile][p + 1], kTileBytes);
  _tile_stored(2, s.sums[tile + 1][p], kTileBytes);
  _tile_stored(3, s.sums[tile + 1][p + 1], kTileBytes);
}

// One tile of rows times one or two panels.
template <bool kTwo>
void one_by(const std::int8_t* q, int64_t stride, const Chunk& c, int64_t tile, int64_t p,
            Expanded& s) {
  const std::uint8_t *left = s.weights[p], *right = kTwo ? s.weights[p + 1] : nullptr;
  QC_START(0, s.sums[tile][p])
  if constexpr (kTwo) {
    QC_START(1, s.sums[tile][p + 1])
  }
  for (int64_t i = c.steps(); i > 0; --i) {
    _tile_loadd(4, q, stride);
    _tile_loadd(6, left, kTileBytes);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kTwo) {
      _tile_loadd(7, right, kTileBytes);
      _tile_dpbssd(1, 4, 7);
      right += kStep * kPanel;
    }
    left += kStep * kPanel;
    q += kStep;
  }
  _tile_stored(0, s.sums[tile][p], kTileBytes);
  if constexpr (kTwo) _tile_stored(1, s.sums[tile][p + 1], kTileBytes);
}

#undef QC_START

void multiply(const QuantizedRows& q, const Chunk& c, const RowTiles& rows, Expanded& s) {
  __asm__ volatile("" ::: "memory");  // GCC does not know what tileloadd reads
  const auto codes = [&](int64_t tile) {
    return q.codes + rows.first_of(tile) * q.stride + c.first * kStrip;
  };
  int64_t tile = 0;
  for (; tile + 2 <= rows.count(); tile += 2) {
    int64_t p = 0;
    for (; p + 2 <= c.panels; p += 2) {
      two_by_two({codes(tile), codes(tile + 1)}, q.stride, c, tile, p, s);
    }
    for (; p < c.panels; ++p) {
      one_by<false>(codes(tile), q.stride, c, tile, p, s);
      one_by<false>(codes(tile + 1), q.stride, c, tile + 1, p, s);
    }
  }
  for (; tile < rows.count(); ++tile) {
    int64_t p = 0;
    for (; p + 2 <= c.panels; p += 2) one_by<true>(codes(tile), q.stride, c, tile, p, s);
    for (; p < c.panels; ++p) one_by<false>(codes(tile), q.stride, c, tile, p, s);
  }
  __asm__ volatile("" ::: "memory");  // nor what tilestored writes
}

template <int kForm>
void block_of_rows(const QuantizedRows& q, const PlaneWeights& w, const Tile& t,
                   const RowTiles& rows, Expanded& s) {
  const int64_t strips = Planes<kForm>::strips(w.k);
  for (int64_t panel = t.panel_begin; panel < t.panel_end; panel += kPanels) {
    const int64_t panels = panel + kPanels < t.panel_end ? kPanels : t.panel_end - panel;
    for (int64_t first = 0; first < strips; first += kChunk / kStrip) {
      const int64_t stop = first + kChunk / kStrip;
      const Chunk c{panel, panels, first, stop < strips ? stop : strips};
      for (int64_t p = 0; p < panels; ++p) expand_panel<kForm>(w, c, p, s);
      multiply(q, c, rows, s);
    }
    for (int64_t tile = 0; tile < rows.count(); ++tile) {
      for (int64_t r = 0; r < rows.of_tile(); ++r) {
        for (int64_t p = 0; p < panels; ++p) {
          finish<Avx512>(q, w, t, rows.first_of(tile) + r, (panel + p) * kPanel,
                         _mm512_load_si512(s.sums[tile][p][r]));
        }
      }
    }
  }
}

template <int kForm>
void linear(const QuantizedRows& q, const PlaneWeights& w, const Tile& t, Linear few_rows) {
  if (t.row_end - t.row_begin < kFewRows) return few_rows(q, w, t);
  Expanded& s = scratch<Expanded>();
  const TilesOfOthers others;
  for (int64_t row = t.row_begin; row < t.row_end; row += kRowTiles * kTileRows) {
    const int64_t stop = row + kRowTiles * kTileRows;
    const RowTiles rows{row, stop < t.row_end ? stop : t.row_end};
    configure_tiles(static_cast<int>(rows.of_tile()));
    block_of_rows<kForm>(q, w, t, rows, s);
  }
}

}  // namespace

#define QC_DEFINE_AMX(letter, bits, ...)                                                     \
  void linear_s8_##letter##bits##_f32_amxint8(const QuantizedRows& q, const PlaneWeights& w, \
                                              const Tile& t) {                               \
    linear<kForm##letter + bits>(q, w, t, linear_s8_##letter##bits##_f32_avx512vnni);        \
  }
QC_EACH_FORM(QC_DEFINE_AMX)

}  // namespace qc::kernels
