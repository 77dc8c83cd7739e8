// Part of body.h: matrix products over column panels. An output is one fma chain over k ascending; a tile of
// rows x panels lives in registers, so the order never depends on the tile.
#pragma once
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

// `panels` point at [k][16] elements each. Columns of the tile: `columns` from the first panel on; the last
// panel may be partly used.
struct TileArgs {
  const char* panels[8];
  size_t k;
  const float* x;
  size_t x_stride;
  float* y;
  size_t y_stride;
  size_t columns;
  const float* bias;    // of the first column, or null
  bool resume = false;  // go on from what stands in y: earlier inputs, no bias yet
};

template <RawCode kCode>
LANES_FN V LoadPanel(const char* p) {
  if constexpr (kCode == RawCode::kF16) return LoadF16(p);
  if constexpr (kCode == RawCode::kBf16) return LoadBf16(reinterpret_cast<const uint16_t*>(p));
  return Load(reinterpret_cast<const float*>(p));
}

template <int kRows, int kPanels>
LANES_FN void StoreTile(const TileArgs& t, V (&acc)[kRows][kPanels]) {
  for (int p = 0; p < kPanels; ++p) {
    const size_t first = static_cast<size_t>(p) * 16;
    const size_t n = t.columns - first < 16 ? t.columns - first : 16;
    for (int r = 0; r < kRows; ++r) {
      float* y = t.y + static_cast<size_t>(r) * t.y_stride + first;
      V v = acc[r][p];
      if (n == 16) {
        if (t.bias != nullptr) v = Add(v, Load(t.bias + first));
        Store(y, v);
      } else {
        if (t.bias != nullptr) v = Add(v, LoadN(t.bias + first, n));
        StoreN(y, v, n);
      }
    }
  }
}

// The sums so far of a tile: zero, or what stands in y.
template <int kRows, int kPanels>
LANES_FN void StartTile(const TileArgs& t, V (&acc)[kRows][kPanels]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      acc[r][p] = Zero();
      if (!t.resume) continue;
      const size_t first = static_cast<size_t>(p) * 16;
      const float* y = t.y + static_cast<size_t>(r) * t.y_stride + first;
      acc[r][p] = t.columns - first < 16 ? LoadN(y, t.columns - first) : Load(y);
    }
  }
}

static constexpr int kPrefetchPanels = 4;  // tiles of at most so many

template <RawCode kCode, int kRows, int kPanels>
void Tile(const TileArgs& t) {
  constexpr size_t kStep = 16 * (kCode == RawCode::kF32 ? 4 : 2);
  V acc[kRows][kPanels];
  StartTile<kRows, kPanels>(t, acc);
  const char* panel[kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) panel[p] = t.panels[p];
  const float* x = t.x;
  const size_t stride = t.x_stride;
  size_t offset = 0;
  for (size_t k = 0; k < t.k; ++k, offset += kStep) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      if constexpr (kPanels <= kPrefetchPanels)
        __builtin_prefetch(panel[p] + offset + kPrefetchBytes / kPanels);
      const V w = LoadPanel<kCode>(panel[p] + offset);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r][p] = Fma(Set1(x[k + static_cast<size_t>(r) * stride]), w, acc[r][p]);
      }
    }
  }
  StoreTile<kRows, kPanels>(t, acc);
}

template <RawCode kCode, int kRows>
LANES_FN void TileOfRows(const TileArgs& t, int panels) {
  constexpr int kMax = kTilePanels[kRows];
  if constexpr (kMax >= 8) {
    if (panels == 8) return Tile<kCode, kRows, 8>(t);
  }
  if constexpr (kMax >= 6) {
    if (panels == 6) return Tile<kCode, kRows, 6>(t);
  }
  if constexpr (kMax >= 4) {
    if (panels == 4) return Tile<kCode, kRows, 4>(t);
  }
  if constexpr (kMax >= 3) {
    if (panels == 3) return Tile<kCode, kRows, 3>(t);
  }
  if constexpr (kMax >= 2) {
    if (panels == 2) return Tile<kCode, kRows, 2>(t);
  }
  Tile<kCode, kRows, 1>(t);
}

// The widest tile not above `limit` and `left` of those TileOfRows knows.
static inline int PanelStep(int limit, size_t left) {
  const int most = left < static_cast<size_t>(limit) ? static_cast<int>(left) : limit;
  return most >= 8 ? 8 : most >= 6 ? 6 : most == 5 ? 4 : most;
}

template <RawCode kCode>
static void RunTile(const TileArgs& t, int rows, int panels) {
  switch (rows) {
    case 1:
      return TileOfRows<kCode, 1>(t, panels);
    case 2:
      return TileOfRows<kCode, 2>(t, panels);
    case 3:
      return TileOfRows<kCode, 3>(t, panels);
    case 4:
      return TileOfRows<kCode, 4>(t, panels);
    default:
      break;
  }
  if constexpr (kTileRows >= 6) {
    if (rows == 5) return TileOfRows<kCode, 5>(t, panels);
    if (rows == 6) return TileOfRows<kCode, 6>(t, panels);
  }
  if constexpr (kTileRows >= 8) {
    if (rows == 7) return TileOfRows<kCode, 7>(t, panels);
    if (rows == 8) return TileOfRows<kCode, 8>(t, panels);
  }
}

// All rows against one group of panels, the row tiles as even as possible (9 rows: 5 + 4, not 8 + 1).
template <RawCode kCode>
static void RowsOfGroup(TileArgs t, size_t rows, int panels) {
  const size_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (size_t i = 0; i < tiles; ++i) {
    const size_t n = rows / tiles + (i < rows % tiles ? 1 : 0);
    RunTile<kCode>(t, static_cast<int>(n), panels);
    t.x += n * t.x_stride;
    t.y += n * t.y_stride;
  }
}

// Panels a tile of the largest row count can have; smaller tiles can have at least as many.
static inline int PanelLimit(size_t rows) {
  const size_t tiles = (rows + kTileRows - 1) / kTileRows;
  return kTilePanels[(rows + tiles - 1) / tiles];
}

template <RawCode kCode>
static void GemmOf(const RawGemm& g) {
  const int limit = PanelLimit(g.rows);
  for (size_t p = g.panel_begin; p < g.panel_end;) {
    const int step = PanelStep(limit, g.panel_end - p);
    TileArgs t;
    for (int i = 0; i < step; ++i) {
      t.panels[i] = static_cast<const char*>(g.data) + (p + static_cast<size_t>(i)) * g.layout.panel_bytes;
    }
    t.k = g.in;
    t.x = g.x;
    t.x_stride = g.x_stride;
    t.y = g.y + p * 16;
    t.y_stride = g.y_stride;
    t.columns = g.out - p * 16;
    t.bias = g.bias == nullptr ? nullptr : g.bias + p * 16;
    RowsOfGroup<kCode>(t, g.rows, step);
    p += static_cast<size_t>(step);
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
