// Packed weights to lanes: scales and codes of one block, and their values (raw_layout.h, docs/NUMERICS.md).
#pragma once
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

alignas(64) static constexpr float kNibbleValues[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) static constexpr float kFp4Values[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                     12, 11, 10, 9,  8,  6,  4,  0};
alignas(64) static constexpr float kIq4Values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                     129, 141, 153, 166, 181, 197, 217, 241};

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
  return {panel + super, header, high, high + HighBytes(kCode)};
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
    case RawScale::kKS:
      return Mul(LoadF16(b.super), LoadI8(b.header));
    case RawScale::kK2:
      *tail = b.header + 16 * half;
      return Mul(LoadF16(b.super), ToFloat(AndI(LoadU8I(*tail), SetI(15))));
    default:
      return Zero();
  }
}
LANES_FN V MinimumOf(const RawLayout& l, const BlockPlaces& b, const char* tail) {
  if (l.scale == RawScale::kK) return Neg(Mul(LoadF16(b.super + 32), LoadU8(tail)));
  if (l.scale == RawScale::kK2) return Neg(Mul(LoadF16(b.super + 32), ToFloat(ShiftRight(LoadU8I(tail), 4))));
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
// Bits of every byte from bit `from` on, moved to bit `to`; `mask` picks them there.
LANES_FN VI MoveBits(VI v, int from, int to, int mask) {
  return AndI(from < to ? ShiftLeft(v, to - from) : from > to ? ShiftRight(v, from - to) : v, SetI(mask));
}
template <RawCode kCode>
LANES_FN VI BytesOf(const BlockPlaces& b, int t) {
  if constexpr (kCode == RawCode::k8 || kCode == RawCode::kFp8) {
    return LoadI(b.codes + 64 * t);
  } else if constexpr (kCode == RawCode::k4 || kCode == RawCode::k4Zero) {
    return NibblesOf<kCode>(b, t);
  } else if constexpr (kCode == RawCode::k4Table) {
    return BytesThrough(NibblesOf<kCode>(b, t), kFp4Codes);
  } else if constexpr (kCode == RawCode::k4Iq) {
    return BytesThrough(NibblesOf<kCode>(b, t), kIq4Codes);
  } else if constexpr (kCode == RawCode::k2 || kCode == RawCode::k3) {
    const VI two = MoveBits(LoadI(b.high + 64 * (t / 4)), 2 * (t % 4), 0, 0x03030303);
    if constexpr (kCode == RawCode::k2) return two;
    return OrI(two, MoveBits(LoadI(b.codes), t, 2, 0x04040404));
  } else if constexpr (kCode == RawCode::k5) {
    return OrI(NibblesOf<kCode>(b, t), MoveBits(LoadI(b.high), t, 4, 0x10101010));
  } else {
    return OrI(NibblesOf<kCode>(b, t), MoveBits(LoadI(b.high + 64 * (t / 4)), 2 * (t % 4), 4, 0x30303030));
  }
}

static constexpr bool IsNibbles(RawCode code) {
  return code == RawCode::k4 || code == RawCode::k4Zero || code == RawCode::k4Table || code == RawCode::k4Iq;
}

// What ValueOf takes: bytes, or the nibbles as they lie where a table of floats is quicker.
template <RawCode kCode>
LANES_FN VI RawOf(const BlockPlaces& b, int t) {
  if constexpr (IsNibbles(kCode) && kNibbleLookup) return LoadI(b.codes + 64 * (t / 2));
  return BytesOf<kCode>(b, t);
}
// Weight of input 4t + j. fp8: s is the scale times 2^120, see Fp8F; one rounding.
template <RawCode kCode, class Table>
LANES_FN V ValueOf(VI raw, int t, int j, const ScaleMin& c, const Table& table) {
  if constexpr (kCode == RawCode::kFp8) {
    return Mul(Fp8F(raw, j), c.s);
  } else {
    V u;
    if constexpr (IsNibbles(kCode) && kNibbleLookup) {
      u = NibbleF(raw, 2 * j + t % 2, table);
    } else {
      u = ByteF(raw, j);
    }
    return kCode == RawCode::k4Zero ? Fma(Sub(u, c.m), c.s, Zero()) : Fma(u, c.s, c.m);
  }
}
template <RawCode kCode>
LANES_FN Table16 TableFor() {
  return LoadTable(kCode == RawCode::k4Table ? kFp4Values
                   : kCode == RawCode::k4Iq  ? kIq4Values
                                             : kNibbleValues);
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
LANES_FN void PrefetchLines(const char* p, size_t bytes) {  // a loop: many at once are dropped
#pragma GCC unroll 1
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + line);
}

// Register tiles of up to `most` rows: rows of the tile that serves so many (spare rows repeat the last one),
// and its panels by its rows.
struct TileShapes {
  int most;
  const int* tile;
  const int* panels;
  int Rows(size_t rows) const {
    return tile[rows < static_cast<size_t>(most) ? static_cast<int>(rows) : most];
  }
};
static constexpr TileShapes kQuantShapes = {kQuantRows, kQuantTile, kQuantPanels};
static constexpr TileShapes kI8Shapes = {kI8Rows, kI8Tile, kI8Panels};

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};
// Calls f(Int<rows>) if there is a tile of so many rows, kMost at most.
template <int kMost, const auto& kTile, class F>
LANES_FN void WithRows(int rows, F f) {
  if constexpr (kTile[kMost] == kMost) {
    if (rows == kMost) return f(Int<kMost>{});
  }
  if constexpr (kMost > 1) WithRows<kMost - 1, kTile>(rows, f);
}

// Calls f(tile, row, its rows, its panels) for rows [first, first + count) of the product in tiles; `row` is
// counted from `first`. A last tile of fewer rows takes the panels of the others in steps of its own.
template <class F>
LANES_FN void ForTiles(const RawProduct& g, size_t first, size_t count, const TileShapes& shapes, F f) {
  const size_t most = static_cast<size_t>(shapes.panels[shapes.Rows(count)]);
  for (size_t p = g.panel_begin; p < g.panel_end;) {
    const size_t step = g.panel_end - p >= most ? most : 1;
    for (size_t row = 0; row < count;) {
      const size_t left = count - row;
      const int rows = shapes.Rows(left);
      const size_t width = static_cast<size_t>(shapes.panels[rows]);
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
