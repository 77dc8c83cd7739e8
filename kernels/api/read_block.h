// Blocks of a checkpoint's row, in the words a panel holds (raw_layout.h). One function per format and
// layout, compiled into the loops that call it: packing is bound by these. Private to kernels/api.
#pragma once
#include <algorithm>
#include <cstring>

#include "kernels/api/blocks.h"

namespace consilium::kernels {

using SourceLayout = WeightSource::Layout;

// The stored row's first bytes.
struct RowPlace {
  const std::byte* values = nullptr;
  const std::byte* scales = nullptr;
  const std::byte* zeros = nullptr;  // words of eight rows, one per group
  uint32_t zero_shift = 0;
};
RowPlace PlaceOf(const WeightSource& source, uint32_t row);  // of the part
size_t GroupsOf(const WeightSource& source);                 // scales of a row
// Blocks that share a scale.
inline uint32_t BlocksPerGroup(const WeightSource& s, const RawLayout& l) {
  return s.group == 0 || s.group >= s.in ? UINT32_MAX : s.group / l.block_k;
}

template <class T>
T LoadAs(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline constexpr uint64_t kLowNibbles = 0x0F0F0F0F0F0F0F0Full;

// Eight codes of four bits, one a byte, as a word: codes 0..3 in the low nibbles, 4..7 in the high ones.
inline uint32_t FoldNibbles(uint64_t codes) { return static_cast<uint32_t>(codes | codes >> 28); }
// The nibbles at `shift` of 32 bytes.
inline void FoldBytes(const std::byte* p, uint32_t shift, uint32_t* word) {
  for (int t = 0; t < 4; ++t) word[t] = FoldNibbles(LoadAs<uint64_t>(p + 8 * t) >> shift & kLowNibbles);
}
// Codes j and j + 16 in byte j.
inline void FoldHalves(const std::byte* p, uint32_t* word) {
  for (int t = 0; t < 2; ++t) {
    const uint64_t bytes = LoadAs<uint64_t>(p + 8 * t);
    word[t] = FoldNibbles(bytes & kLowNibbles);
    word[t + 2] = FoldNibbles(bytes >> 4 & kLowNibbles);
  }
}
// Codes 2j and 2j + 1 in byte j: within each word the middle bytes change places, then in each half the
// middle nibbles.
inline void FoldPairs(const std::byte* p, uint32_t* word) {
  for (int t = 0; t < 4; t += 2) {
    uint64_t x = LoadAs<uint64_t>(p + 4 * t);
    x = (x & 0xFF0000FFFF0000FFull) | (x & 0x00FF000000FF0000ull) >> 8 | (x & 0x0000FF000000FF00ull) << 8;
    x = (x & 0xF00FF00FF00FF00Full) | (x & 0x0F000F000F000F00ull) >> 4 | (x & 0x00F000F000F000F0ull) << 4;
    word[t] = static_cast<uint32_t>(x);
    word[t + 1] = static_cast<uint32_t>(x >> 32);
  }
}
// Bit k to bit 8 * (k % 4) + k / 4.
inline uint32_t SpreadBits(uint32_t bits) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) word |= ((bits >> (4 * i) & 15) * 0x00204081u & 0x01010101u) << i;
  return word;
}

// Scale and minimum factor (6 bits each) of sub-block j from the 12 packed bytes.
inline void KFactors(const std::byte* bytes, uint32_t j, uint8_t* factor) {
  const auto* p = reinterpret_cast<const uint8_t*>(bytes);
  if (j < 4) {
    factor[0] = p[j] & 63;
    factor[1] = p[j + 4] & 63;
  } else {
    factor[0] = static_cast<uint8_t>((p[j + 4] & 15) | (p[j - 4] >> 6 << 4));
    factor[1] = static_cast<uint8_t>((p[j + 4] >> 4) | (p[j] >> 6 << 4));
  }
}

// Pairs of bits at 2 * r of 32 bytes.
inline void ReadPairs(const std::byte* p, uint32_t r, uint32_t* high) {
  high[0] = high[1] = 0;
  for (int t = 0; t < 4; ++t) {
    high[0] |= (LoadAs<uint32_t>(p + 4 * t) >> (2 * r) & 0x03030303u) << (2 * t);
    high[1] |= (LoadAs<uint32_t>(p + 16 + 4 * t) >> (2 * r) & 0x03030303u) << (2 * t);
  }
}
// Bit j of 32 bytes.
inline uint32_t ReadBits(const std::byte* p, uint32_t j) {
  uint32_t word = 0;
  for (int t = 0; t < 8; ++t) word |= (LoadAs<uint32_t>(p + 4 * t) >> j & 0x01010101u) << t;
  return word;
}

template <bool kFive>
void ReadQ45K(const std::byte* p, uint32_t j, Block* b) {
  b->super_scale = LoadAs<uint16_t>(p);
  b->super_minimum = LoadAs<uint16_t>(p + 2);
  KFactors(p + 4, j, b->factor);
  FoldBytes(p + (kFive ? 48 : 16) + size_t{j / 2} * 32, j % 2 * 4, b->word);
  if (!kFive) return;
  b->high[0] = ReadBits(p + 16, j);
}

inline void ReadQ2K(const std::byte* p, uint32_t j, Block* b) {
  std::memcpy(b->factor, p + 2 * j, 2);
  ReadPairs(p + 16 + 32 * (j / 4), j % 4, b->high);
  b->super_scale = LoadAs<uint16_t>(p + 80);
  b->super_minimum = LoadAs<uint16_t>(p + 82);
}

inline void ReadQ3K(const std::byte* p, uint32_t j, Block* b) {
  b->word[0] = ReadBits(p, j);
  ReadPairs(p + 32 + 32 * (j / 4), j % 4, b->high);
  const auto* packed = reinterpret_cast<const uint8_t*>(p + 96);  // 16 scales: four bits, then two
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t k = 2 * j + i, low = packed[k % 8] >> (k / 8 * 4) & 15,
                   high = packed[8 + k % 4] >> (k / 4 * 2) & 3;
    b->factor[i] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  b->super_scale = LoadAs<uint16_t>(p + 108);
}

inline void ReadIq4Xs(const std::byte* p, uint32_t j, Block* b) {
  b->super_scale = LoadAs<uint16_t>(p);
  const uint32_t low = static_cast<uint32_t>(p[4 + j / 2]) >> (j % 2 * 4) & 15;
  const uint32_t high = LoadAs<uint16_t>(p + 2) >> (2 * j) & 3u;
  b->factor[0] = static_cast<uint8_t>((low | high << 4) - 32);
  FoldHalves(p + 8 + size_t{j} * 16, b->word);
}

inline void ReadQ6K(const std::byte* p, uint32_t j, Block* b) {
  const uint32_t half = j / 4, r = j % 4;
  FoldBytes(p + 64 * half + 32 * (r % 2), r / 2 * 4, b->word);
  ReadPairs(p + 128 + 32 * half, r, b->high);
  std::memcpy(b->factor, p + 192 + 8 * half + 2 * r, 2);
  b->super_scale = LoadAs<uint16_t>(p + 208);
}

template <WeightFormat F>
void ReadGguf(const std::byte* row, size_t index, Block* b) {
  constexpr bool kSuper = F >= WeightFormat::kQ4K;
  const std::byte* p = row + (kSuper ? index / 8 : index) * GgufBlockBytes(F);
  const uint32_t sub = index % 8;
  if constexpr (F == WeightFormat::kQ4K) return ReadQ45K<false>(p, sub, b);
  if constexpr (F == WeightFormat::kQ5K) return ReadQ45K<true>(p, sub, b);
  if constexpr (F == WeightFormat::kQ6K) return ReadQ6K(p, sub, b);
  if constexpr (F == WeightFormat::kQ2K) return ReadQ2K(p, sub, b);
  if constexpr (F == WeightFormat::kQ3K) return ReadQ3K(p, sub, b);
  if constexpr (F == WeightFormat::kIq4Xs) return ReadIq4Xs(p, sub, b);
  if constexpr (F == WeightFormat::kMxfp4) {
    b->scale = static_cast<uint8_t>(*p);
    return FoldHalves(p + 1, b->word);
  }
  b->scale = LoadAs<uint16_t>(p);
  p += 2;
  if constexpr (F == WeightFormat::kQ4_1 || F == WeightFormat::kQ5_1) {
    b->minimum = LoadAs<uint16_t>(p);
    p += 2;
  }
  if constexpr (F == WeightFormat::kQ8_0) {
    for (int t = 0; t < 8; ++t) b->word[t] = LoadAs<uint32_t>(p + 4 * t) ^ 0x80808080u;
  } else if constexpr (F == WeightFormat::kQ5_0 || F == WeightFormat::kQ5_1) {
    b->high[0] = SpreadBits(LoadAs<uint32_t>(p));
    FoldHalves(p + 4, b->word);
  } else {
    FoldHalves(p, b->word);
  }
}

inline uint32_t ScaleAt(const WeightSource& s, const std::byte* scales, size_t group) {
  return s.scale_type == DType::kF32 ? LoadAs<uint32_t>(scales + group * 4)
                                     : LoadAs<uint16_t>(scales + group * 2);
}

// Bits of the scale as f32.
inline uint32_t WideScale(DType type, uint32_t bits) {
  return type == DType::kF32 ? bits
         : type == DType::kBf16
             ? bits << 16
             : __builtin_bit_cast(uint32_t, numerics::FromF16(static_cast<uint16_t>(bits)));
}

// The n codes of a row's ragged last block, which end before the block does, the rest `fill` (a zero).
template <bool kNibbles>
inline void PadCodes(const std::byte* from, size_t n, uint8_t fill, std::byte* to) {
  if (kNibbles) {
    std::memset(to, fill | fill << 4, kGroup / 2);
    std::memcpy(to, from, n / 2);
    if (n % 2 != 0) to[n / 2] = (from[n / 2] & std::byte{15}) | static_cast<std::byte>(fill << 4);
  } else {
    std::memcpy(to, from, n);
  }
}

// GPTQ: a block's words lie a row of words apart, as do the scales of its groups.
template <WeightFormat F>
void ReadWords(const WeightSource& s, const RowPlace& row, size_t index, size_t group, Block* b) {
  constexpr size_t kWords = F == WeightFormat::kInt8 ? kGroup / 4 : kGroup / 8;
  b->scale = ScaleAt(s, row.scales, group * s.out);
  if constexpr (F == WeightFormat::kInt4Zero) {
    const size_t words = (size_t{s.out} + 7) / 8;
    b->zero = static_cast<uint8_t>(LoadAs<uint32_t>(row.zeros + group * words * 4) >> row.zero_shift & 15);
  }
  uint32_t word[kWords];
  for (size_t t = 0; t < kWords; ++t)
    word[t] = LoadAs<uint32_t>(row.values + (index * kWords + t) * s.out * 4);
  if constexpr (F == WeightFormat::kInt8) {
    std::memcpy(b->word, word, sizeof word);
  } else {
    FoldPairs(reinterpret_cast<const std::byte*>(word), b->word);
  }
}

// Block `index` of the stored row, with the scale of `group`.
template <WeightFormat F, SourceLayout L>
void ReadBlock(const WeightSource& s, const RowPlace& row, size_t index, size_t group, Block* b) {
  if constexpr (L == SourceLayout::kGguf) return ReadGguf<F>(row.values, index, b);
  if constexpr (L == SourceLayout::kWords) return ReadWords<F>(s, row, index, group, b);
  if constexpr (L == SourceLayout::kGptOss) {
    b->scale = static_cast<uint8_t>(row.scales[index]);
    return FoldPairs(row.values + index * (kGroup / 2), b->word);
  }
  constexpr bool kNibbles = F == WeightFormat::kInt4 || F == WeightFormat::kInt4Zero;
  constexpr size_t kInputs = F == WeightFormat::kFp8 ? kBlockKMax : kGroup;
  const size_t left = s.in - index * kInputs;
  const std::byte* p = row.values + index * kInputs / (kNibbles ? 2 : 1);
  b->scale = ScaleAt(s, row.scales, group);
  if constexpr (F == WeightFormat::kFp8) b->scale = WideScale(s.scale_type, b->scale);
  if constexpr (F == WeightFormat::kInt4Zero) {
    b->zero = static_cast<uint8_t>(LoadAs<uint32_t>(row.zeros + group * 4) >> row.zero_shift & 15);
  }
  std::byte padded[kInputs];
  if (left < kInputs) {
    const uint8_t zero = F == WeightFormat::kInt4Zero ? b->zero : 8;
    if (!kNibbles) {
      const bool compressed = F == WeightFormat::kInt8 && L == SourceLayout::kCompressed;
      std::memset(padded, compressed ? 0x80 : 0, kInputs);
    }
    PadCodes<kNibbles>(p, left, zero, padded);
    p = padded;
  }
  if constexpr (kNibbles) return FoldPairs(p, b->word);
  constexpr uint32_t kFlip = F == WeightFormat::kInt8 && L == SourceLayout::kPlain ? 0x80808080u : 0;
  for (size_t t = 0; t < kInputs / 4; ++t) b->word[t] = LoadAs<uint32_t>(p + 4 * t) ^ kFlip;
}

inline constexpr float kScaleMax = 0x1p100f;
inline constexpr float kFp8ScaleMax = 128.0f;  // kernels fold 2^120 into it
inline constexpr uint8_t kE8m0Max = 227;       // 2^100
inline bool FiniteF16(uint16_t bits) { return (bits & 0x7C00) != 0x7C00; }

// Whether scales, minima and fp8 codes are a weight's.
inline bool Plausible(const RawLayout& layout, const Block& b) {
  const uint32_t magnitude = b.scale & 0x7FFFFFFF;
  switch (layout.scale) {
    case RawScale::kE8m0:
      return b.scale <= kE8m0Max;
    case RawScale::kF16:
      return FiniteF16(static_cast<uint16_t>(b.scale)) && FiniteF16(b.minimum);
    case RawScale::kBf16:
      return (magnitude & 0x7FFF) << 16 < __builtin_bit_cast(uint32_t, kScaleMax);
    case RawScale::kF32:
      break;
    default:
      return FiniteF16(b.super_scale) && FiniteF16(b.super_minimum);
  }
  if (layout.code != RawCode::kFp8) return magnitude < __builtin_bit_cast(uint32_t, kScaleMax);
  uint32_t nan = 0;
  for (uint32_t w : b.word) nan |= (w & 0x7F7F7F7Fu) + 0x01010101u;
  return (nan & 0x80808080u) == 0 && magnitude < __builtin_bit_cast(uint32_t, kFp8ScaleMax);
}

// f.template operator()<format, layout>() of a packed format.
template <class F>
auto WithFormat(const WeightSource& s, F f) {
  using W = WeightFormat;
  using L = SourceLayout;
  switch (s.format) {
    case W::kFp8:
      return f.template operator()<W::kFp8, L::kPlain>();
    case W::kInt8:
      if (s.layout == L::kPlain) return f.template operator()<W::kInt8, L::kPlain>();
      if (s.layout == L::kWords) return f.template operator()<W::kInt8, L::kWords>();
      return f.template operator()<W::kInt8, L::kCompressed>();
    case W::kInt4:
      if (s.layout == L::kWords) return f.template operator()<W::kInt4, L::kWords>();
      return f.template operator()<W::kInt4, L::kCompressed>();
    case W::kInt4Zero:
      if (s.layout == L::kWords) return f.template operator()<W::kInt4Zero, L::kWords>();
      return f.template operator()<W::kInt4Zero, L::kCompressed>();
    case W::kMxfp4:
      if (s.layout == L::kGptOss) return f.template operator()<W::kMxfp4, L::kGptOss>();
      return f.template operator()<W::kMxfp4, L::kGguf>();
    case W::kQ8_0:
      return f.template operator()<W::kQ8_0, L::kGguf>();
    case W::kQ4_0:
      return f.template operator()<W::kQ4_0, L::kGguf>();
    case W::kQ4_1:
      return f.template operator()<W::kQ4_1, L::kGguf>();
    case W::kQ5_0:
      return f.template operator()<W::kQ5_0, L::kGguf>();
    case W::kQ5_1:
      return f.template operator()<W::kQ5_1, L::kGguf>();
    case W::kQ4K:
      return f.template operator()<W::kQ4K, L::kGguf>();
    case W::kQ5K:
      return f.template operator()<W::kQ5K, L::kGguf>();
    case W::kIq4Nl:
      return f.template operator()<W::kIq4Nl, L::kGguf>();
    case W::kQ2K:
      return f.template operator()<W::kQ2K, L::kGguf>();
    case W::kQ3K:
      return f.template operator()<W::kQ3K, L::kGguf>();
    case W::kIq4Xs:
      return f.template operator()<W::kIq4Xs, L::kGguf>();
    default:
      return f.template operator()<W::kQ6K, L::kGguf>();
  }
}

// The code a format is packed to.
constexpr RawCode CodeOfFormat(WeightFormat f) {
  switch (f) {
    case WeightFormat::kFp8:
      return RawCode::kFp8;
    case WeightFormat::kInt8:
    case WeightFormat::kQ8_0:
      return RawCode::k8;
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ5_1:
    case WeightFormat::kQ5K:
      return RawCode::k5;
    case WeightFormat::kQ6K:
      return RawCode::k6;
    case WeightFormat::kQ2K:
      return RawCode::k2;
    case WeightFormat::kQ3K:
      return RawCode::k3;
    default:
      return RawCode::k4;  // k4Zero, k4Table and k4Iq lie alike
  }
}

}  // namespace consilium::kernels
