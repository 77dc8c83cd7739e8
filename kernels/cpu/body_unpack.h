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
    const V u = NibbleF(raw, 2 * j + t % 2, table);
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

// The columns of a tile, added bias and all, from registers to the rows.
template <int kRows, int kPanels>
LANES_FN void StoreRows(V (&acc)[kRows][kPanels], float* const* y, size_t columns, const float* bias) {
  for (int p = 0; p < kPanels; ++p) {
    const size_t first = static_cast<size_t>(p) * 16;
    const size_t n = columns - first < 16 ? columns - first : 16;
    for (int r = 0; r < kRows; ++r) {
      V v = acc[r][p];
      if (bias != nullptr) v = Add(v, n == 16 ? Load(bias + first) : LoadN(bias + first, n));
      if (n == 16) {
        Store(y[r] + first, v);
      } else {
        StoreN(y[r] + first, v, n);
      }
    }
  }
}

// The tile of packed weights that serves `rows` rows: 1, 2, 4 or 8; spare rows repeat the last one.
static inline int QuantTileRows(size_t rows) {
  const int most = rows < static_cast<size_t>(kQuantRows) ? static_cast<int>(rows) : kQuantRows;
  return most <= 2 ? most : most <= 4 ? 4 : 8;
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
