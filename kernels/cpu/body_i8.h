// Class i8g32: exact integer dots of a group, then acc = fma(float(dot), sx * s, acc), groups ascending; a
// minimum adds acc = fma(m, sx * float(sum of x), acc).
#pragma once
#include "kernels/api/numerics.h"
#include "kernels/cpu/body_unpack.h"

namespace consilium::kernels::CONSILIUM_TARGET {

struct I8TileArgs {
  const char* panels[8];
  const RawLayout* layout;
  size_t groups;
  const unsigned char* x[8];
  float* y[8];
  size_t columns;
  const float* bias;
};

template <class T>
LANES_FN T ReadAt(const unsigned char* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// Steps [first, last) of four inputs: dot[r] += codes . x
template <RawCode kCode, int kRows>
LANES_FN void DotSteps(VI (&dot)[kRows], const BlockPlaces& b, const unsigned char* const (&x)[kRows],
                       size_t at, int first, int last) {
#pragma GCC unroll 8
  for (int t = first; t < last; ++t) {
    const VI w = BytesOf<kCode>(b, t);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t four = ReadAt<int32_t>(x[r] + at + 4 * static_cast<size_t>(t));
      dot[r] = kCode == RawCode::k8 ? Dot4Wide(dot[r], w, four) : Dot4(dot[r], w, four);
    }
  }
}

// Of one group of every row: scale, sum, and what the bias of the codes adds to the dot of either part.
template <int kRows>
struct GroupOfRows {
  float scale[kRows];
  int32_t sum[kRows];
  int32_t bias[2][kRows];
};
template <RawCode kCode, int kRows>
LANES_FN void ReadGroup(const RawLayout& l, const unsigned char* const (&x)[kRows], size_t group,
                        size_t groups, GroupOfRows<kRows>* g) {
  const int32_t bias = -static_cast<int32_t>(l.bias);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const unsigned char* sums = x[r] + groups * 36 + group * 4;
    const int32_t low = ReadAt<int16_t>(sums), high = ReadAt<int16_t>(sums + 2);
    g->scale[r] = ReadAt<float>(x[r] + groups * 32 + group * 4);
    g->sum[r] = low + high;
    g->bias[0][r] = bias * (kCode == RawCode::k6 ? low : low + high);
    g->bias[1][r] = bias * high;
  }
}

template <RawCode kCode, int kRows>
LANES_FN void I8Block(V (&acc)[kRows], const RawLayout& l, const BlockPlaces& b,
                      const unsigned char* const (&x)[kRows], const GroupOfRows<kRows>& g, size_t at) {
  constexpr int kParts = kCode == RawCode::k6 ? 2 : 1;
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    const char* tail = nullptr;
    const V s = ScaleOf(l, b, part, &tail);
    VI dot[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dot[r] = SetI(g.bias[part][r]);
    DotSteps<kCode, kRows>(dot, b, x, at, part * 4, kParts == 1 ? 8 : part * 4 + 4);
    if (l.tail == RawTail::kZero) {
      const VI zero = LoadU8I(tail);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) dot[r] = SubI(dot[r], MulI(zero, SetI(g.sum[r])));
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[r] = Fma(ToFloat(dot[r]), Mul(Set1(g.scale[r]), s), acc[r]);
    if (l.tail == RawTail::kMin) {
      const V m = MinimumOf(l, b, tail);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r] = Fma(m, Set1(g.scale[r] * static_cast<float>(g.sum[r])), acc[r]);
      }
    }
  }
}

template <RawCode kCode, int kRows, int kPanels>
static void I8Tile(const I8TileArgs& a) {
  const RawLayout& l = *a.layout;
  V acc[kPanels][kRows];
  const unsigned char* x[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = a.x[r];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[p][r] = Zero();
  }
  for (size_t group = 0; group < a.groups; ++group) {
    const size_t super = l.SuperOffset(group), block = l.BlockOffset(group);
    GroupOfRows<kRows> g;
    ReadGroup<kCode, kRows>(l, x, group, a.groups, &g);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const BlockPlaces b = PlacesOf<kCode>(l, a.panels[p], super, block);
      for (uint32_t line = 0; line < l.block_bytes; line += 64) __builtin_prefetch(b.header + line + 2048);
      I8Block<kCode, kRows>(acc[p], l, b, x, g, group * 32);
    }
  }
  V rows[kRows][kPanels];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) rows[r][p] = acc[p][r];
  }
  StoreRows<kRows, kPanels>(rows, a.y, a.columns, a.bias);
}

template <RawCode kCode, int kRows>
LANES_FN void I8TileOf(const I8TileArgs& a, int panels) {
  constexpr int kMost = kQuantPanels[kRows] < 4 ? kQuantPanels[kRows] : 4;
  panels == kMost ? I8Tile<kCode, kRows, kMost>(a) : I8Tile<kCode, kRows, 1>(a);
}

template <RawCode kCode>
static void I8Rows(const I8TileArgs& a, int rows, int panels) {
  if (rows == 1) I8TileOf<kCode, 1>(a, panels);
  if (rows == 2) I8TileOf<kCode, 2>(a, panels);
  if constexpr (kQuantRows >= 4) {
    if (rows == 4) I8TileOf<kCode, 4>(a, panels);
  }
  if constexpr (kQuantRows >= 8) {
    if (rows == 8) I8TileOf<kCode, 8>(a, panels);
  }
}

// `panels` of the widest row tile; a last tile of fewer rows takes them one by one where its own width
// differs.
template <RawCode kCode>
static void I8Panels(const I8TileArgs& a, int rows, int panels) {
  const int largest = kQuantPanels[rows], most = largest < 4 ? largest : 4;
  if (panels == most) return I8Rows<kCode>(a, rows, panels);
  I8TileArgs one = a;
  for (int p = 0; p < panels; ++p) {
    const size_t skip = 16 * static_cast<size_t>(p);
    one.panels[0] = a.panels[p];
    one.columns = a.columns - skip;
    one.bias = a.bias == nullptr ? nullptr : a.bias + skip;
    for (int r = 0; r < rows; ++r) one.y[r] = a.y[r] + skip;
    I8Rows<kCode>(one, rows, 1);
  }
}

template <RawCode kCode>
static void GemmI8Of(const RawI8Gemm& g) {
  const size_t groups = (size_t{g.in} + 31) / 32, row_bytes = groups * 40;
  const int largest = kQuantPanels[QuantTileRows(g.rows)], most = largest < 4 ? largest : 4;
  for (size_t p = g.panel_begin; p < g.panel_end;) {
    const int step = g.panel_end - p >= static_cast<size_t>(most) ? most : 1;
    I8TileArgs a;
    a.layout = &g.layout;
    a.groups = groups;
    a.columns = g.out - p * 16;
    a.bias = g.bias == nullptr ? nullptr : g.bias + p * 16;
    for (int i = 0; i < step; ++i) {
      a.panels[i] = static_cast<const char*>(g.data) + (p + static_cast<size_t>(i)) * g.layout.panel_bytes;
    }
    for (size_t row = 0; row < g.rows;) {
      const size_t left = g.rows - row;
      const int rows = QuantTileRows(left);
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        const size_t at = row + (r < left ? r : left - 1);
        a.x[r] = g.x + at * row_bytes;
        a.y[r] = g.y + at * g.y_stride + p * 16;
      }
      I8Panels<kCode>(a, rows, step);
      row += static_cast<size_t>(rows) < left ? static_cast<size_t>(rows) : left;
    }
    p += static_cast<size_t>(step);
  }
}

static void GemmI8(const RawI8Gemm& g) {
  if (g.rows == 0) return;
  switch (g.layout.code) {
    case RawCode::k8:
      return GemmI8Of<RawCode::k8>(g);
    case RawCode::k4:
    case RawCode::k4Zero:
      return GemmI8Of<RawCode::k4>(g);
    case RawCode::k4Table:
      return GemmI8Of<RawCode::k4Table>(g);
    case RawCode::k5:
      return GemmI8Of<RawCode::k5>(g);
    case RawCode::k6:
      return GemmI8Of<RawCode::k6>(g);
    default:
      return;
  }
}

static void QuantizeRows(const float* x, size_t x_stride, size_t rows, uint32_t n, unsigned char* out) {
  const size_t groups = (size_t{n} + 31) / 32;
  for (size_t r = 0; r < rows; ++r, out += groups * 40) {
    for (size_t g = 0; g < groups; ++g) {
      int8_t* q = reinterpret_cast<int8_t*>(out) + g * 32;
      const size_t count = n - g * 32 < 32 ? n - g * 32 : 32;
      const float scale = numerics::QuantizeGroup(x + r * x_stride + g * 32, count, q);
      __builtin_memcpy(out + groups * 32 + g * 4, &scale, 4);
      int sums[2] = {0, 0};
      for (int i = 0; i < 32; ++i) sums[i / 16] += q[i];
      const int16_t halves[2] = {static_cast<int16_t>(sums[0]), static_cast<int16_t>(sums[1])};
      __builtin_memcpy(out + groups * 36 + g * 4, halves, 4);
    }
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
