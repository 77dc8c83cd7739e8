// Class i8g32: exact integer dots of a group, then acc = fma(float(dot), sx * s, acc), groups ascending; a
// minimum adds acc = fma(m, sx * float(sum of x), acc).
#pragma once
#include "kernels/api/numerics.h"
#include "kernels/cpu/body_unpack.h"

namespace consilium::kernels::CONSILIUM_TARGET {

// Rows of a tile, gathered for it group by group: the inputs as [8 steps of four][rows] words, a scale per
// row, then what the sums of the group give: [rows] words (k6: of either half).
//   symmetric: what the bias of the codes adds to the dot; minimum: sx * float(sum); zero points: the sum.
template <RawCode kCode>
static constexpr size_t GroupWords(size_t rows) {
  return rows * (kCode == RawCode::k6 ? 11 : 10);
}

struct I8TileArgs : PackedTile {
  size_t groups;
  const int32_t* x;
};

template <class T>
LANES_FN T ReadAt(const void* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LANES_FN float FloatAt(const int32_t* p) { return ReadAt<float>(p); }

// Row `row` of a tile of `rows`, groups [begin, end).
template <RawCode kCode>
static void GatherRow(const RawLayout& l, const unsigned char* x, size_t groups, size_t begin, size_t end,
                      size_t rows, int32_t* out) {
  const unsigned char* scales = x + groups * 32;
  const unsigned char* sums = x + groups * 36;
  const int32_t bias = -static_cast<int32_t>(l.bias);
  out += begin * GroupWords<kCode>(rows);
  for (size_t group = begin; group < end; ++group, out += GroupWords<kCode>(rows)) {
    for (size_t t = 0; t < 8; ++t) out[t * rows] = ReadAt<int32_t>(x + group * 32 + t * 4);
    const int32_t low = ReadAt<int16_t>(sums + group * 4), high = ReadAt<int16_t>(sums + group * 4 + 2);
    const float scale = ReadAt<float>(scales + group * 4);
    out[8 * rows] = __builtin_bit_cast(int32_t, scale);
    if (kCode == RawCode::k6) {
      out[9 * rows] = bias * low;
      out[10 * rows] = bias * high;
    } else if (l.tail == RawTail::kMin) {
      out[9 * rows] = __builtin_bit_cast(int32_t, scale* static_cast<float>(low + high));
    } else {
      out[9 * rows] = l.tail == RawTail::kZero ? low + high : bias * (low + high);
    }
  }
}

// Eight words of each of eight rows, transposed: with scalar moves the gathering would show.
typedef int32_t Words8 __attribute__((vector_size(32)));
typedef float Floats8 __attribute__((vector_size(32)));
LANES_FN void Transpose8(const unsigned char* const (&x)[8], size_t offset, Words8 (&out)[8]) {
  Words8 a[8], b[8];
  for (int r = 0; r < 8; ++r) __builtin_memcpy(&a[r], x[r] + offset, sizeof a[r]);
  for (int r = 0; r < 8; r += 2) {
    b[r] = __builtin_shufflevector(a[r], a[r + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[r + 1] = __builtin_shufflevector(a[r], a[r + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int r = 0; r < 8; r += 4) {
    for (int i = 0; i < 2; ++i) {
      a[r + 2 * i] = __builtin_shufflevector(b[r + i], b[r + i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[r + 2 * i + 1] = __builtin_shufflevector(b[r + i], b[r + i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int r = 0; r < 4; ++r) {
    out[r] = __builtin_shufflevector(a[r], a[r + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    out[r + 4] = __builtin_shufflevector(a[r], a[r + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// As GatherRow, eight rows and eight groups at a time; returns the first group left.
template <RawCode kCode>
static size_t GatherEight(const RawLayout& l, const unsigned char* const (&x)[8], size_t groups,
                          int32_t* out) {
  const int32_t bias = -static_cast<int32_t>(l.bias);
  size_t group = 0;
  for (; group + 8 <= groups; group += 8) {
    Words8 scales[8], sums[8], words[8];
    Transpose8(x, groups * 32 + group * 4, scales);
    Transpose8(x, groups * 36 + group * 4, sums);
    for (size_t g = 0; g < 8; ++g, out += GroupWords<kCode>(8)) {
      Transpose8(x, (group + g) * 32, words);
      const Words8 low = (sums[g] << 16) >> 16, high = sums[g] >> 16, sum = low + high;
      Words8 last[2] = {sum * bias, high * bias};
      if (kCode == RawCode::k6) last[0] = low * bias;
      if (l.tail == RawTail::kZero) last[0] = sum;
      if (l.tail == RawTail::kMin)
        last[0] = (Words8)((Floats8)scales[g] * __builtin_convertvector(sum, Floats8));
      __builtin_memcpy(out, words, sizeof words);
      __builtin_memcpy(out + 64, &scales[g], sizeof scales[g]);
      __builtin_memcpy(out + 72, last, kCode == RawCode::k6 ? 64 : 32);
    }
  }
  return group;
}

// Whether a group is summed in 16-bit pairs, exact for codes up to 15: 16 * 15 * 127 < 2^15.
template <RawCode kCode>
static constexpr bool kInPairs = kPairs && kCode == RawCode::k4;

// Steps [first, last) of four inputs of a group: dot[p][r] += codes . x
template <RawCode kCode, int kRows, int kPanels>
LANES_FN void DotSteps(VI (&dot)[kPanels][kRows], const BlockPlaces (&b)[kPanels], const int32_t* x,
                       int first, int last) {
#pragma GCC unroll 8
  for (int t = first; t < last; ++t) {
    VI w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) w[p] = BytesOf<kCode>(b[p], t);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const VI four = SetI(x[t * kRows + r]);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        if constexpr (kInPairs<kCode>) {
          dot[p][r] = DotPairs(dot[p][r], w[p], four);
        } else {
          dot[p][r] = kCode == RawCode::k8 ? Dot4Wide(dot[p][r], w[p], four) : Dot4(dot[p][r], w[p], four);
        }
      }
    }
  }
}

template <RawCode kCode, int kRows, int kPanels>
LANES_FN void I8Group(V (&acc)[kPanels][kRows], const RawLayout& l, const BlockPlaces (&b)[kPanels],
                      const int32_t* x) {
  constexpr int kParts = kCode == RawCode::k6 ? 2 : 1;
  const int32_t* scales = x + 8 * kRows;
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    const int32_t* sums = scales + (1 + part) * kRows;
    const bool biased = l.tail == RawTail::kNone && !(kCode == RawCode::k8 && kWideTakesBias);
    VI start[kRows], dot[kPanels][kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      start[r] = SetI(biased ? sums[r] : 0);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) dot[p][r] = kInPairs<kCode> ? SetI(0) : start[r];
    }
    DotSteps<kCode, kRows, kPanels>(dot, b, x, part * 4, kParts == 1 ? 8 : part * 4 + 4);
    if constexpr (kInPairs<kCode>) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) dot[p][r] = AddPairs(start[r], dot[p][r]);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const char* tail = nullptr;
      const V s = ScaleOf(l, b[p], part, &tail);
      if (l.tail == RawTail::kZero) {
        const VI zero = LoadU8I(tail);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) dot[p][r] = SubI(dot[p][r], MulI(zero, SetI(sums[r])));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[p][r] = Fma(ToFloat(dot[p][r]), Mul(Set1(FloatAt(scales + r)), s), acc[p][r]);
      }
      if (l.tail == RawTail::kMin) {
        const V m = MinimumOf(l, b[p], tail);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) acc[p][r] = Fma(m, Set1(FloatAt(sums + r)), acc[p][r]);
      }
    }
  }
}

template <RawCode kCode, int kRows, int kPanels>
static void I8Tile(const I8TileArgs& a) {
  const RawLayout l = *a.layout;
  V acc[kPanels][kRows];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[p][r] = Zero();
  }
  const int32_t* x = a.x;
  for (size_t group = 0; group < a.groups; ++group, x += GroupWords<kCode>(kRows)) {
    const size_t super = l.SuperOffset(group), block = l.BlockOffset(group);
    const size_t ahead = AheadOf<kPanels>(l, block);
    BlockPlaces b[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      b[p] = PlacesOf<kCode>(l, a.panels[p], super, block);
      PrefetchLines(a.panels[p] + ahead, l.block_bytes);
    }
    I8Group<kCode, kRows, kPanels>(acc, l, b, x);
  }
  V rows[kRows][kPanels];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) rows[r][p] = acc[p][r];
  }
  StoreRows<kRows, kPanels>(rows, a);
}

template <RawCode kCode, int kRows>
LANES_FN void I8TileOf(const I8TileArgs& a, int panels) {
  constexpr int kMost = kI8Panels[kRows];
  panels == kMost ? I8Tile<kCode, kRows, kMost>(a) : I8Tile<kCode, kRows, 1>(a);
}

template <RawCode kCode>
static void I8Rows(const I8TileArgs& a, int rows, int panels) {
  if (rows == 1) I8TileOf<kCode, 1>(a, panels);
  if (rows == 2) I8TileOf<kCode, 2>(a, panels);
  if constexpr (kQuantRows >= 4) {
    if (rows == 4) I8TileOf<kCode, 4>(a, panels);
  }
  if constexpr (kQuantRows >= 6) {
    if (rows == 6) I8TileOf<kCode, 6>(a, panels);
  }
  if constexpr (kQuantRows >= 8) {
    if (rows == 8) I8TileOf<kCode, 8>(a, panels);
  }
}

// Rows [first, first + count) in tiles, spare rows repeating the last one.
template <RawCode kCode>
static void GatherRows(const RawI8Gemm& g, size_t groups, size_t first, size_t count, int32_t* out) {
  for (size_t row = 0; row < count;) {
    const size_t left = count - row, rows = static_cast<size_t>(QuantTileRows(left));
    const unsigned char* x[8];
    for (size_t r = 0; r < 8; ++r) x[r] = g.x + (first + row + (r < left ? r : left - 1)) * groups * 40;
    const size_t done = rows == 8 ? GatherEight<kCode>(g.layout, x, groups, out) : 0;
    for (size_t r = 0; r < rows; ++r) GatherRow<kCode>(g.layout, x[r], groups, done, groups, rows, out + r);
    out += groups * GroupWords<kCode>(rows);
    row += rows < left ? rows : left;
  }
}

template <RawCode kCode>
static void GemmI8Of(const RawI8Gemm& g) {
  const size_t groups = (size_t{g.in} + 31) / 32;
  for (size_t first = 0; first < g.rows; first += kI8RowBlock) {
    const size_t count = g.rows - first < kI8RowBlock ? g.rows - first : kI8RowBlock;
    GatherRows<kCode>(g, groups, first, count, g.scratch);
    ForTiles(g, first, count, kI8Panels, [&](const PackedTile& t, size_t row, int rows, int panels) {
      I8Rows<kCode>({t, groups, g.scratch + row * groups * GroupWords<kCode>(1)}, rows, panels);
    });
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

// Bytes made unsigned by adding 128, summed in four fields of 16 bits, these by a product.
LANES_FN int16_t SumOf16(const int8_t* q) {
  constexpr uint64_t kSigns = 0x8080808080808080ull, kEven = 0x00FF00FF00FF00FFull;
  uint64_t fields = 0;
  for (int i = 0; i < 16; i += 8) {
    const uint64_t bytes = ReadAt<uint64_t>(q + i) ^ kSigns;
    fields += (bytes & kEven) + (bytes >> 8 & kEven);
  }
  return static_cast<int16_t>(static_cast<int>(fields * 0x0001000100010001ull >> 48) - 16 * 128);
}

// Scale and sums of the group to their places; n is 32 where the compiler is to see it.
LANES_FN void QuantizeOne(const float* x, size_t n, int8_t* codes, unsigned char* scale_out,
                          unsigned char* sums_out) {
  alignas(32) int8_t q[32];
  const float scale = numerics::QuantizeGroup(x, n, q);
  const int16_t halves[2] = {SumOf16(q), SumOf16(q + 16)};
  __builtin_memcpy(codes, q, 32);
  __builtin_memcpy(scale_out, &scale, 4);
  __builtin_memcpy(sums_out, halves, 4);
}

static void QuantizeRows(const float* x, size_t x_stride, size_t rows, uint32_t n, unsigned char* out) {
  const size_t groups = (size_t{n} + 31) / 32;
  for (size_t r = 0; r < rows; ++r, out += groups * 40, x += x_stride) {
    unsigned char* scales = out + groups * 32;
    for (size_t g = 0; g < groups; ++g) {
      int8_t* q = reinterpret_cast<int8_t*>(out) + g * 32;
      const float* from = x + g * 32;
      if (n - g * 32 >= 32) {
        QuantizeOne(from, 32, q, scales + g * 4, scales + groups * 4 + g * 4);
      } else {
        QuantizeOne(from, n - g * 32, q, scales + g * 4, scales + groups * 4 + g * 4);
      }
    }
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
