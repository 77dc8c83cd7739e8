// Class f32 over packed weights: values widened in registers, one fma chain over k ascending.
#pragma once
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_unpack.h"

namespace consilium::kernels::CONSILIUM_TARGET {

struct QuantTileArgs : PackedTile {
  size_t in;
  const float* x[8];
};

// Inputs 4t .. 4t + n - 1 of the block at input k of every panel.
template <RawCode kCode, int kRows, int kPanels>
LANES_FN void QuantStep(V (&acc)[kRows][kPanels], const BlockPlaces (&b)[kPanels],
                        const ScaleMin (&c)[kPanels], const Table16& table, const float* const (&x)[kRows],
                        size_t k, int t, int n) {
  VI raw[kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) raw[p] = RawOf<kCode>(b[p], t);
#pragma GCC unroll 4
  for (int j = 0; j < n; ++j) {
    const size_t at = k + 4 * static_cast<size_t>(t) + static_cast<size_t>(j);
    V w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) w[p] = ValueOf<kCode>(raw[p], t, j, c[p], table);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V one = Set1(x[r][at]);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) acc[r][p] = Fma(one, w[p], acc[r][p]);
    }
  }
}

template <RawCode kCode, int kRows, int kPanels>
static void QuantTile(const QuantTileArgs& a) {
  constexpr size_t kBlock = kCode == RawCode::kFp8 ? 128 : 32;
  constexpr int kSteps = static_cast<int>(kBlock) / 4;
  const RawLayout& l = *a.layout;
  const auto table = TableFor<kCode>();
  V acc[kRows][kPanels];
  const float* x[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = a.x[r];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[r][p] = Zero();
  }
  for (size_t k = 0; k < a.in; k += kBlock) {
    const size_t super = l.SuperOffset(k / kBlock), block = l.BlockOffset(k / kBlock);
    const size_t ahead = AheadOf<kPanels>(l, block);
    BlockPlaces b[kPanels];
    ScaleMin c[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      b[p] = PlacesOf<kCode>(l, a.panels[p], super, block);
      c[p] = ScalesFor<kCode>(l, b[p], 0);
      if (kBlock == 32) PrefetchLines(a.panels[p] + ahead, l.block_bytes);
    }
    const size_t left = a.in - k;
    const int whole = left < kBlock ? static_cast<int>(left / 4) & ~1 : kSteps;
    for (int t = 0; t < whole; t += 2) {  // pairs: low and high nibbles
      if (HasHalves(kCode) && t == kSteps / 2) {
        for (int p = 0; p < kPanels; ++p) c[p] = ScalesFor<kCode>(l, b[p], 1);
      }
      if (kBlock > 32) {  // a long block: lines as they are used
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) PrefetchLines(a.panels[p] + ahead + t * 64, 128);
      }
      QuantStep<kCode, kRows, kPanels>(acc, b, c, table, x, k, t, 4);
      QuantStep<kCode, kRows, kPanels>(acc, b, c, table, x, k, t + 1, 4);
    }
    if (left < kBlock) {  // K-quants have no ragged end
      for (int t = whole; static_cast<size_t>(t) * 4 < left; ++t) {
        const size_t rest = left - static_cast<size_t>(t) * 4;
        QuantStep<kCode, kRows, kPanels>(acc, b, c, table, x, k, t, rest < 4 ? static_cast<int>(rest) : 4);
      }
    }
  }
  StoreRows<kRows, kPanels>(acc, a);
}

template <RawCode kCode>
static void QuantRows(const QuantTileArgs& a, int rows, int panels) {
  WithRows<kQuantRows, kQuantTile>(rows, [&](auto r) {
    constexpr int kRows = decltype(r)::value, kMost = kQuantPanels[kRows];
    panels == kMost ? QuantTile<kCode, kRows, kMost>(a) : QuantTile<kCode, kRows, 1>(a);
  });
}

static constexpr size_t kWidenInputs = 256;  // a multiple of every block; 16 KiB of f32 a panel

// Inputs [k, k + n) of a panel as f32 [n][16].
template <RawCode kCode>
static void WidenPanel(const RawLayout& l, const char* panel, size_t k, size_t n, float* out) {
  constexpr size_t kBlock = kCode == RawCode::kFp8 ? 128 : 32;
  const auto table = TableFor<kCode>();
  for (size_t first = k; first < k + n; first += kBlock) {
    const BlockPlaces b =
        PlacesOf<kCode>(l, panel, l.SuperOffset(first / kBlock), l.BlockOffset(first / kBlock));
    ScaleMin c = ScalesFor<kCode>(l, b, 0);
    if (kBlock == 32) PrefetchLines(b.header + kPrefetchBytes, l.block_bytes);
    for (int t = 0; t < static_cast<int>(kBlock) / 4; t += 2, out += 8 * 16) {
      if (kBlock > 32) PrefetchLines(b.codes + kPrefetchBytes + 64 * t, 128);
      if (HasHalves(kCode) && t == 4) c = ScalesFor<kCode>(l, b, 1);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const VI raw = RawOf<kCode>(b, t + i);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) Store(out + (4 * i + j) * 16, ValueOf<kCode>(raw, t + i, j, c, table));
      }
    }
  }
}

// Many rows: a part of a panel is widened once for all of them.
template <RawCode kCode>
static void QuantGemmWidened(const RawGemm& g) {
  alignas(64) float wide[kWidenInputs * 16];
  TileArgs t;
  t.panels[0] = reinterpret_cast<const char*>(wide);
  t.x_stride = g.x_stride;
  t.y_stride = g.y_stride;
  for (size_t p = g.panel_begin; p < g.panel_end; ++p) {
    const char* panel = static_cast<const char*>(g.data) + p * g.layout.panel_bytes;
    t.y = g.y + p * 16;
    t.columns = g.out - p * 16;
    for (size_t k = 0; k < g.in; k += kWidenInputs) {
      t.k = g.in - k < kWidenInputs ? g.in - k : kWidenInputs;
      t.x = g.x + k;
      t.resume = k > 0;
      t.bias = k + t.k == g.in && g.bias != nullptr ? g.bias + p * 16 : nullptr;
      WidenPanel<kCode>(g.layout, panel, k, t.k, wide);
      RowsOfGroup<RawCode::kF32>(t, g.rows, 1);
    }
  }
}

template <RawCode kCode>
static void QuantGemmOf(const RawGemm& g) {
  if constexpr (kWidenRows != ~size_t{0}) {
    if (g.rows > kWidenRows) return QuantGemmWidened<kCode>(g);
  }
  ForTiles(g, 0, g.rows, kQuantShapes, [&](const PackedTile& t, size_t first, int rows, int panels) {
    QuantTileArgs a{t, g.in, {}};
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      const size_t row = first + r < g.rows ? first + r : g.rows - 1;
      a.x[r] = g.x + row * g.x_stride;
    }
    QuantRows<kCode>(a, rows, panels);
  });
}

static void QuantGemm(const RawGemm& g) {
  if (g.rows == 0) return;
  switch (g.layout.code) {
    case RawCode::kF16:
      return GemmOf<RawCode::kF16>(g);
    case RawCode::kFp8:
      return QuantGemmOf<RawCode::kFp8>(g);
    case RawCode::k8:
      return QuantGemmOf<RawCode::k8>(g);
    case RawCode::k4:
      return QuantGemmOf<RawCode::k4>(g);
    case RawCode::k4Zero:
      return QuantGemmOf<RawCode::k4Zero>(g);
    case RawCode::k4Table:
      return QuantGemmOf<RawCode::k4Table>(g);
    case RawCode::k5:
      return QuantGemmOf<RawCode::k5>(g);
    case RawCode::k6:
      return QuantGemmOf<RawCode::k6>(g);
    case RawCode::k2:
      return QuantGemmOf<RawCode::k2>(g);
    case RawCode::k3:
      return QuantGemmOf<RawCode::k3>(g);
    case RawCode::k4Iq:
      return QuantGemmOf<RawCode::k4Iq>(g);
    default:
      return;
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
