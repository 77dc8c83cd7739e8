// Class f32 over packed weights: values widened in registers for few rows; for many, some panels at a time
// into a small buffer, then the product of body_gemm.h. Either way one fma chain over k ascending.
#pragma once
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_unpack.h"

namespace consilium::kernels::CONSILIUM_TARGET {

static constexpr size_t kChunkK = 128;  // inputs widened at a time; a multiple of every block

struct QuantTileArgs {
  const char* panels[8];
  const RawLayout* layout;
  size_t in;
  const float* x[8];
  float* y[8];
  size_t columns;
  const float* bias;
};

// Inputs 4t .. 4t + n - 1 of the block at input k of every panel.
template <RawCode kCode, int kRows, int kPanels>
LANES_FN void QuantStep(V (&acc)[kRows][kPanels], const BlockPlaces (&b)[kPanels],
                        const ScaleMin (&c)[kPanels], const Table16& table, const float* const (&x)[kRows],
                        size_t k, int t, int n) {
  VI raw[kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    if (kCode == RawCode::k8 || kCode == RawCode::kFp8 || t % 2 == 0) {
      __builtin_prefetch(b[p].codes + 64 * t + kPrefetchBytes);
    }
    raw[p] = RawOf<kCode>(b[p], t);
  }
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
  const Table16 table = TableFor<kCode>();
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
    BlockPlaces b[kPanels];
    ScaleMin c[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      b[p] = PlacesOf<kCode>(l, a.panels[p], super, block);
      c[p] = ScalesFor<kCode>(l, b[p], 0);
    }
    const size_t left = a.in - k;
    const int whole = left < kBlock ? static_cast<int>(left / 4) & ~1 : kSteps;
    for (int t = 0; t < whole; t += 2) {  // pairs: low and high nibbles
      if (kCode == RawCode::k6 && t == kSteps / 2) {
        for (int p = 0; p < kPanels; ++p) c[p] = ScalesFor<kCode>(l, b[p], 1);
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
  StoreRows<kRows, kPanels>(acc, a.y, a.columns, a.bias);
}

// Panel values of inputs [k, k + n) as [n][16] floats. k is a multiple of kChunkK.
template <RawCode kCode>
static void Widen(const RawLayout& l, const char* panel, size_t k, size_t n, float* out) {
  constexpr size_t kBlock = kCode == RawCode::kFp8 ? 128 : 32;
  const Table16 table = TableFor<kCode>();
  for (size_t i = 0; i < n; i += kBlock) {
    const size_t index = (k + i) / kBlock;
    const BlockPlaces b = PlacesOf<kCode>(l, panel, l.SuperOffset(index), l.BlockOffset(index));
    ScaleMin c = ScalesFor<kCode>(l, b, 0);
    for (size_t t = 0; t < kBlock / 4 && i + 4 * t < n; ++t) {
      if (kCode == RawCode::k6 && t == 4) c = ScalesFor<kCode>(l, b, 1);
      const VI raw = RawOf<kCode>(b, static_cast<int>(t));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {  // beyond n within the buffer's padding
        Store(out + (i + 4 * t + static_cast<size_t>(j)) * 16,
              ValueOf<kCode>(raw, static_cast<int>(t), j, c, table));
      }
    }
  }
}

template <RawCode kCode>
static void QuantManyRows(const RawQuantGemm& g) {
  constexpr int kPanelsMax = 4;
  alignas(64) float buffer[kPanelsMax][(kChunkK + 4) * 16];
  int limit = PanelLimit(g.rows);
  if (limit > kPanelsMax) limit = kPanelsMax;
  for (size_t p = g.panel_begin; p < g.panel_end;) {
    const int step = PanelStep(limit, g.panel_end - p);
    TileArgs t;
    t.x_stride = g.x_stride;
    t.y = g.y + p * 16;
    t.y_stride = g.y_stride;
    t.columns = g.out - p * 16;
    for (size_t k = 0; k < g.in; k += kChunkK) {
      t.k = g.in - k < kChunkK ? g.in - k : kChunkK;
      for (int i = 0; i < step; ++i) {
        const char* panel =
            static_cast<const char*>(g.data) + (p + static_cast<size_t>(i)) * g.layout.panel_bytes;
        Widen<kCode>(g.layout, panel, k, t.k, buffer[i]);
        t.panels[i] = reinterpret_cast<const char*>(buffer[i]);
      }
      t.x = g.x + k;
      t.resume = k > 0;
      t.bias = g.bias == nullptr || k + t.k < g.in ? nullptr : g.bias + p * 16;
      RowsOfGroup<RawCode::kF32>(t, g.rows, step);
    }
    p += static_cast<size_t>(step);
  }
}

template <RawCode kCode, int kRows>
LANES_FN void QuantTileOf(const QuantTileArgs& a, int panels) {
  if (panels == 1) return QuantTile<kCode, kRows, 1>(a);
  QuantTile<kCode, kRows, kQuantPanels[kRows]>(a);
}

template <RawCode kCode>
static void QuantGemmOf(const RawQuantGemm& g) {
  if (g.rows > static_cast<size_t>(kQuantRows)) return QuantManyRows<kCode>(g);
  const int rows = QuantTileRows(g.rows), most = kQuantPanels[rows];
  for (size_t p = g.panel_begin; p < g.panel_end;) {
    const int step = g.panel_end - p >= static_cast<size_t>(most) ? most : 1;
    QuantTileArgs a;
    a.layout = &g.layout;
    a.in = g.in;
    a.columns = g.out - p * 16;
    a.bias = g.bias == nullptr ? nullptr : g.bias + p * 16;
    for (int i = 0; i < step; ++i) {
      a.panels[i] = static_cast<const char*>(g.data) + (p + static_cast<size_t>(i)) * g.layout.panel_bytes;
    }
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      const size_t row = r < g.rows ? r : g.rows - 1;
      a.x[r] = g.x + row * g.x_stride;
      a.y[r] = g.y + row * g.y_stride + p * 16;
    }
    if (rows == 1) QuantTileOf<kCode, 1>(a, step);
    if (rows == 2) QuantTileOf<kCode, 2>(a, step);
    if constexpr (kQuantRows >= 4) {
      if (rows == 4) QuantTileOf<kCode, 4>(a, step);
    }
    if constexpr (kQuantRows >= 8) {
      if (rows == 8) QuantTileOf<kCode, 8>(a, step);
    }
    p += static_cast<size_t>(step);
  }
}

static void QuantGemm(const RawQuantGemm& g) {
  if (g.rows == 0) return;
  switch (g.layout.code) {
    case RawCode::kF16:
      return GemmOf<RawCode::kF16>(RawGemm{g.data, g.layout.panel_bytes, g.out, g.in, false, g.x, g.x_stride,
                                           g.rows, g.y, g.y_stride, g.panel_begin, g.panel_end, g.bias});
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
    default:
      return;
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
