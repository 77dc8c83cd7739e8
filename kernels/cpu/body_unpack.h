// Packed weights to lanes: scales and codes of one block, and their values (raw_layout.h, docs/NUMERICS.md).
#pragma once
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

alignas(64) static constexpr float kNibbleValues[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) static constexpr float kFp4Values[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                     12, 11, 10, 9,  8,  6,  4,  0};

// The value of code u is fma(u, s, m): the bias of a symmetric format lies in m, exactly. k4Zero: m is the
// zero point, the value (u - m) * s (zero * s would be rounded where s has 24 bits).
struct ScaleMin {
  V s, m;
};

struct BlockPlaces {
  const char* super;
  const char* header;
  const char* high;
  const char* codes;
};
template <RawCode kCode>
LANES_FN BlockPlaces PlacesOf(const RawLayout& l, const char* panel, size_t super, size_t block) {
  const char* header = panel + block;
  const char* high = header + l.header;
  return {panel + super, header, high, high + (kCode == RawCode::k5 ? 64 : kCode == RawCode::k6 ? 128 : 0)};
}

// Scale and true minimum; *tail: what follows the scales.
LANES_FN V ScaleOf(const RawLayout& l, const BlockPlaces& b, int half, const char** tail) {
  switch (l.scale) {
    case RawScale::kF16:
      *tail = b.header + 32;
      return LoadF16(b.header);
    case RawScale::kBf16:
      *tail = b.header + 32;
      return LoadBf16(reinterpret_cast<const uint16_t*>(b.header));
    case RawScale::kF32:
      *tail = b.header + 64;
      return Load(reinterpret_cast<const float*>(b.header));
    case RawScale::kE8m0:
      *tail = b.header + 16;
      return LoadE8m0(b.header);
    case RawScale::kK:
      *tail = b.header + 16;
      return Mul(LoadF16(b.super), LoadU8(b.header));
    case RawScale::kK6:
      return Mul(LoadF16(b.super), LoadI8(b.header + 16 * half));
    default:
      return Zero();
  }
}
LANES_FN V MinimumOf(const RawLayout& l, const BlockPlaces& b, const char* tail) {
  if (l.scale == RawScale::kK) return Neg(Mul(LoadF16(b.super + 32), LoadU8(tail)));
  return LoadF16(tail);
}
LANES_FN ScaleMin ScalesOf(const RawLayout& l, const BlockPlaces& b, int half) {
  const char* tail = nullptr;
  ScaleMin r;
  r.s = ScaleOf(l, b, half, &tail);
  if (l.tail == RawTail::kMin) {
    r.m = MinimumOf(l, b, tail);
  } else if (l.tail == RawTail::kZero) {
    r.m = LoadU8(tail);
  } else {
    r.m = Neg(Mul(Set1(static_cast<float>(l.bias)), r.s));
  }
  return r;
}

// Inputs 4t .. 4t + 3 of the 16 columns: one byte each.
template <RawCode kCode>
LANES_FN VI NibblesOf(const BlockPlaces& b, int t) {
  return AndI(ShiftRight(LoadI(b.codes + 64 * (t / 2)), 4 * (t % 2)), SetI(0x0F0F0F0F));
}
template <RawCode kCode>
LANES_FN VI BytesOf(const BlockPlaces& b, int t) {
  if constexpr (kCode == RawCode::k8 || kCode == RawCode::kFp8) {
    return LoadI(b.codes + 64 * t);
  } else if constexpr (kCode == RawCode::k4) {
    return NibblesOf<kCode>(b, t);
  } else if constexpr (kCode == RawCode::k4Table) {
    return BytesThrough(NibblesOf<kCode>(b, t), kFp4Codes);
  } else if constexpr (kCode == RawCode::k5) {
    const VI high = AndI(ShiftRight(LoadI(b.high), t), SetI(0x01010101));
    return OrI(NibblesOf<kCode>(b, t), ShiftLeft(high, 4));
  } else {
    const VI high = AndI(ShiftRight(LoadI(b.high + 64 * (t / 4)), 2 * (t % 4)), SetI(0x03030303));
    return OrI(NibblesOf<kCode>(b, t), ShiftLeft(high, 4));
  }
}

static constexpr bool IsNibbles(RawCode code) {
  return code == RawCode::k4 || code == RawCode::k4Zero || code == RawCode::k4Table;
}

// What ValueOf takes: bytes, or for four bits the nibbles as they lie.
template <RawCode kCode>
LANES_FN VI RawOf(const BlockPlaces& b, int t) {
  if constexpr (IsNibbles(kCode)) return LoadI(b.codes + 64 * (t / 2));
  return BytesOf<kCode>(b, t);
}
// Weight of input 4t + j. fp8: s is the scale times 2^120, see Fp8F; one rounding.
template <RawCode kCode>
LANES_FN V ValueOf(VI raw, int t, int j, const ScaleMin& c, const Table16& table) {
  if constexpr (kCode == RawCode::kFp8) {
    return Mul(Fp8F(raw, j), c.s);
  } else if constexpr (IsNibbles(kCode)) {
    const int n = 2 * j + t % 2;
    const V u = kCode == RawCode::k4Table ? NibbleF(raw, n, table) : NibbleNumberF(raw, n, table);
    if constexpr (kCode == RawCode::k4Zero) return Fma(Sub(u, c.m), c.s, Zero());
    return Fma(u, c.s, c.m);
  } else {
    return Fma(ByteF(raw, j), c.s, c.m);
  }
}
template <RawCode kCode>
LANES_FN Table16 TableFor() {
  return LoadTable(kCode == RawCode::k4Table ? kFp4Values : kNibbleValues);
}
template <RawCode kCode>
LANES_FN ScaleMin ScalesFor(const RawLayout& l, const BlockPlaces& b, int half) {
  if constexpr (kCode == RawCode::kFp8) {
    return {Mul(Load(reinterpret_cast<const float*>(b.header)), Set1(0x1p120f)), Zero()};
  }
  return ScalesOf(l, b, half);
}

// Some panels of packed weights and the outputs of some rows.
struct PackedTile {
  const char* panels[8];
  const RawLayout* layout;
  float* y[8];
  size_t columns;     // from the first panel on; the last panel may be partly used
  const float* bias;  // of the first column, or null
};

// The columns of a tile, added bias and all, from registers to the rows.
template <int kRows, int kPanels>
LANES_FN void StoreRows(V (&acc)[kRows][kPanels], const PackedTile& t) {
  for (int p = 0; p < kPanels; ++p) {
    const size_t first = static_cast<size_t>(p) * 16;
    const size_t n = t.columns - first < 16 ? t.columns - first : 16;
    for (int r = 0; r < kRows; ++r) {
      V v = acc[r][p];
      if (t.bias != nullptr) v = Add(v, n == 16 ? Load(t.bias + first) : LoadN(t.bias + first, n));
      if (n == 16) {
        Store(t.y[r] + first, v);
      } else {
        StoreN(t.y[r] + first, v, n);
      }
    }
  }
}

// Where in a panel the lines lie that are wanted so much later: at its end, in the next ones of a tile's.
template <int kPanels>
LANES_FN size_t AheadOf(const RawLayout& l, size_t block) {
  const size_t ahead = block + kPrefetchBytes / kPanels;
  return ahead < l.panel_bytes ? ahead : ahead + (kPanels - 1) * l.panel_bytes;
}
LANES_FN void PrefetchLines(const char* p, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + line);
}

// The tile of packed weights that serves `rows` rows: 1, 2, 4, 6 or 8; spare rows repeat the last one.
static inline int QuantTileRows(size_t rows) {
  const int most = rows < static_cast<size_t>(kQuantRows) ? static_cast<int>(rows) : kQuantRows;
  return most <= 2 ? most : (most + 1) / 2 * 2;
}

// Calls f(tile, row, its rows, its panels) for rows [first, first + count) of the product in tiles; `row` is
// counted from `first`. `widths`: panels of a tile by its rows; a last tile of fewer rows takes the panels of
// the others in steps of its own.
template <class F>
LANES_FN void ForTiles(const RawProduct& g, size_t first, size_t count, const int* widths, F f) {
  const size_t most = static_cast<size_t>(widths[QuantTileRows(count)]);
  for (size_t p = g.panel_begin; p < g.panel_end;) {
    const size_t step = g.panel_end - p >= most ? most : 1;
    for (size_t row = 0; row < count;) {
      const size_t left = count - row;
      const int rows = QuantTileRows(left);
      const size_t width = static_cast<size_t>(widths[rows]);
      for (size_t i = p; i < p + step;) {
        const size_t n = p + step - i >= width ? width : 1;
        PackedTile t;
        t.layout = &g.layout;
        t.columns = g.out - i * 16;
        t.bias = g.bias == nullptr ? nullptr : g.bias + i * 16;
        for (size_t j = 0; j < n; ++j) {
          t.panels[j] = static_cast<const char*>(g.data) + (i + j) * g.layout.panel_bytes;
        }
        for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
          t.y[r] = g.y + (first + row + (r < left ? r : left - 1)) * g.y_stride + i * 16;
        }
        f(t, row, rows, static_cast<int>(n));
        i += n;
      }
      row += static_cast<size_t>(rows) < left ? static_cast<size_t>(rows) : left;
    }
    p += step;
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
