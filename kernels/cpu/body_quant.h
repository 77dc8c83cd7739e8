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
      if (kCode == RawCode::k6 && t == kSteps / 2) {
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

template <RawCode kCode, int kRows>
LANES_FN void QuantTileOf(const QuantTileArgs& a, int panels) {
  if (panels == 1) return QuantTile<kCode, kRows, 1>(a);
  QuantTile<kCode, kRows, kQuantPanels[kRows]>(a);
}

template <RawCode kCode>
static void QuantRows(const QuantTileArgs& a, int rows, int panels) {
  if (rows == 1) QuantTileOf<kCode, 1>(a, panels);
  if (rows == 2) QuantTileOf<kCode, 2>(a, panels);
  if constexpr (kQuantRows >= 4) {
    if (rows == 4) QuantTileOf<kCode, 4>(a, panels);
  }
  if constexpr (kQuantRows >= 6) {
    if (rows == 6) QuantTileOf<kCode, 6>(a, panels);
  }
  if constexpr (kQuantRows >= 8) {
    if (rows == 8) QuantTileOf<kCode, 8>(a, panels);
  }
}

template <RawCode kCode>
static void QuantGemmOf(const RawGemm& g) {
  ForTiles(g, 0, g.rows, kQuantPanels, [&](const PackedTile& t, size_t first, int rows, int panels) {
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
    default:
      return;
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
