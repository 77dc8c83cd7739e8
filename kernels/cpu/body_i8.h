// Class i8g32: exact integer dots of a group, then acc = fma(float(dot), sx * s, acc), groups ascending; a
// minimum adds acc = fma(m, sx * float(sum of x), acc).
#pragma once
#include "kernels/api/numerics.h"
#include "kernels/cpu/body_unpack.h"

namespace consilium::kernels::CONSILIUM_TARGET {

// Rows of a tile, gathered for it group by group: the inputs as [8 steps of four][rows] words, a scale per
// row, then what the sums of the group give: [rows] words (of either half where the code has halves).
//   symmetric: what the bias of the codes adds to the dot; minimum: sx * float(sum); zero points: the sum.
template <RawCode kCode>
static constexpr size_t GroupWords(size_t rows) {
  return rows * (HasHalves(kCode) ? 11 : 10);
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
    if (HasHalves(kCode)) {
      const bool minimum = l.tail == RawTail::kMin;
      out[9 * rows] = minimum ? __builtin_bit_cast(int32_t, scale* static_cast<float>(low)) : bias * low;
      out[10 * rows] = minimum ? __builtin_bit_cast(int32_t, scale* static_cast<float>(high)) : bias * high;
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
      if (HasHalves(kCode)) last[0] = low * bias;
      if (l.tail == RawTail::kZero) last[0] = sum;
      if (l.tail == RawTail::kMin) {
        last[0] =
            (Words8)((Floats8)scales[g] * __builtin_convertvector(HasHalves(kCode) ? low : sum, Floats8));
        last[1] = (Words8)((Floats8)scales[g] * __builtin_convertvector(high, Floats8));
      }
      __builtin_memcpy(out, words, sizeof words);
      __builtin_memcpy(out + 64, &scales[g], sizeof scales[g]);
      __builtin_memcpy(out + 72, last, HasHalves(kCode) ? 64 : 32);
    }
  }
  return group;
}

// Whether codes go up to 255: bias 128.
static constexpr bool IsWide(RawCode code) { return code == RawCode::k8 || code == RawCode::k4Iq; }

// The codes of a step as a dot takes them.
template <RawCode kCode>
LANES_FN auto OperandOf(const BlockPlaces& b, int t) {
  if constexpr (IsWide(kCode)) {
    return WideOf(BytesOf<kCode>(b, t));
  } else {
    return BytesOf<kCode>(b, t);
  }
}
template <RawCode kCode>
using Operand = decltype(OperandOf<kCode>(BlockPlaces{}, 0));

// The codes of a block: as they lie in memory, or unpacked once where more rows use them than have their dots
// in registers.
template <RawCode kCode, int kPanels>
struct CodesInMemory {
  const BlockPlaces (&b)[kPanels];
  inline __attribute__((always_inline)) Operand<kCode> At(int p, int t) const {
    return OperandOf<kCode>(b[p], t);
  }
};
template <RawCode kCode, int kPanels>
struct UnpackedCodes {
  Operand<kCode> w[kPanels][8];
  explicit inline __attribute__((always_inline)) UnpackedCodes(const BlockPlaces (&b)[kPanels]) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) w[p][t] = OperandOf<kCode>(b[p], t);
    }
  }
  inline __attribute__((always_inline)) const Operand<kCode>& At(int p, int t) const { return w[p][t]; }
};

// Whether products are added up in 16 bits for kPairSteps steps.
template <RawCode kCode>
static constexpr bool kInPairs = !IsWide(kCode) && kPairSteps<kCode> > 0;

// Step t of four inputs of a group: dot[p][r] += codes . x, the words of a step `rows` apart.
template <RawCode kCode, int kRows, int kPanels, class Codes>
LANES_FN void DotStep(VI (&dot)[kPanels][kRows], const Codes& codes, const int32_t* x, int rows, int t) {
  Operand<kCode> w[kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) w[p] = codes.At(p, t);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const VI four = SetI(x[t * rows + r]);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      if constexpr (kInPairs<kCode>) {
        dot[p][r] = DotPairs(dot[p][r], w[p], four);
      } else {
        dot[p][r] = Dot4(dot[p][r], w[p], four);
      }
      if constexpr (kRows > 1) Pin(dot[p][r]);  // of one row memory is the bound, either way
    }
  }
}

// dot[p][r] = start[r] + codes . x over steps [first, first + kSteps).
template <RawCode kCode, int kSteps, int kRows, int kPanels, class Codes>
LANES_FN void Dots(VI (&dot)[kPanels][kRows], const VI (&start)[kRows], const Codes& codes, const int32_t* x,
                   int rows, int first) {
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dot[p][r] = start[r];
  }
  if constexpr (kInPairs<kCode>) {
    constexpr int kFold = kPairSteps<kCode> < kSteps ? kPairSteps<kCode> : kSteps;
#pragma GCC unroll 4
    for (int t = first; t < first + kSteps; t += kFold) {
      VI pairs[kPanels][kRows];
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) pairs[p][r] = SetI(0);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kFold; ++i) DotStep<kCode>(pairs, codes, x, rows, t + i);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) dot[p][r] = AddPairs(dot[p][r], pairs[p][r]);
      }
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kSteps; ++i) DotStep<kCode>(dot, codes, x, rows, first + i);
  }
}

// Where the words of a group lie (GatherRow).
template <RawCode kCode, int kRows>
LANES_FN const int32_t* ScalesAt(const int32_t* x) {
  return x + 8 * kRows;
}
template <RawCode kCode, int kRows>
LANES_FN const int32_t* SumsAt(const int32_t* x, int part) {
  return ScalesAt<kCode, kRows>(x) + (1 + part) * kRows;
}

// The dots of rows [first, first + kDots) of a tile of kRows.
template <RawCode kCode, int kDots, int kRows, int kPanels, class Codes>
LANES_FN void DotsOfRows(VI (&dot)[kPanels][kDots], const RawLayout& l, const Codes& codes, const int32_t* x,
                         int part, int first) {
  constexpr int kSteps = HasHalves(kCode) ? 4 : 8;
  const int32_t* sums = SumsAt<kCode, kRows>(x, part) + first;
  const bool biased = l.tail == RawTail::kNone && !(IsWide(kCode) && kWideTakesBias);
  VI start[kDots];
#pragma GCC unroll 8
  for (int r = 0; r < kDots; ++r) start[r] = SetI(biased ? sums[r] : 0);
  Dots<kCode, kSteps>(dot, start, codes, x + first, kRows, part * kSteps);
}

// acc += dots, scaled.
template <RawCode kCode, int kRows, int kPanels>
LANES_FN void AddDots(V (&acc)[kPanels][kRows], VI (&dot)[kPanels][kRows], const RawLayout& l,
                      const BlockPlaces (&b)[kPanels], const int32_t* x, int part) {
  const int32_t* scales = ScalesAt<kCode, kRows>(x);
  const int32_t* sums = SumsAt<kCode, kRows>(x, part);
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

// Ends what the compiler may keep in registers: as registers the codes of a block would push out the dots.
LANES_FN void ToMemory(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

template <RawCode kCode, int kRows, int kPanels>
LANES_FN void I8Group(V (&acc)[kPanels][kRows], const RawLayout& l, const BlockPlaces (&b)[kPanels],
                      const int32_t* x) {
  constexpr int kParts = HasHalves(kCode) ? 2 : 1;
  constexpr int kSets = (kRows + kDotRows - 1) / kDotRows, kDots = kRows / kSets;
  static_assert(kDots * kSets == kRows);
  VI dot[kPanels][kRows];
  if constexpr (kSets == 1) {
    const CodesInMemory<kCode, kPanels> codes{b};
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      DotsOfRows<kCode, kRows, kRows>(dot, l, codes, x, part, 0);
      AddDots<kCode, kRows, kPanels>(acc, dot, l, b, x, part);
    }
  } else {
    const UnpackedCodes<kCode, kPanels> unpacked(b);
    ToMemory(&unpacked);
    for (int part = 0; part < kParts; ++part) {
      for (int first = 0; first < kRows; first += kDots) {
        VI some[kPanels][kDots];
        DotsOfRows<kCode, kDots, kRows>(some, l, unpacked, x, part, first);
        for (int p = 0; p < kPanels; ++p) {
          for (int r = 0; r < kDots; ++r) dot[p][first + r] = some[p][r];
        }
        ToMemory(&dot);
      }
      AddDots<kCode, kRows, kPanels>(acc, dot, l, b, x, part);
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

template <RawCode kCode>
static void I8Rows(const I8TileArgs& a, int rows, int panels) {
  WithRows<kI8Rows, kI8Tile>(rows, [&](auto r) {
    constexpr int kRows = decltype(r)::value, kMost = kI8Panels[kRows];
    panels == kMost ? I8Tile<kCode, kRows, kMost>(a) : I8Tile<kCode, kRows, 1>(a);
  });
}

// Rows [first, first + count) in tiles, spare rows repeating the last one.
template <RawCode kCode>
static void GatherRows(const RawI8Gemm& g, size_t groups, size_t first, size_t count, int32_t* out) {
  for (size_t row = 0; row < count;) {
    const size_t left = count - row, rows = static_cast<size_t>(kI8Shapes.Rows(left));
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
    ForTiles(g, first, count, kI8Shapes, [&](const PackedTile& t, size_t row, int rows, int panels) {
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
    case RawCode::k2:
      return GemmI8Of<RawCode::k2>(g);
    case RawCode::k3:
      return GemmI8Of<RawCode::k3>(g);
    case RawCode::k4Iq:
      return GemmI8Of<RawCode::k4Iq>(g);
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
