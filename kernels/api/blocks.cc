#include "kernels/api/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "common/base/status.h"

namespace consilium::kernels {
namespace {

constexpr float kScaleMax = 0x1p100f;
constexpr float kFp8ScaleMax = 128.0f;  // kernels fold 2^120 into it
constexpr uint8_t kE8m0Max = 227;       // 2^100
constexpr uint8_t kFp8Nan = 0x7F;

template <class T>
T Read(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
uint8_t U8(const std::byte* p) { return static_cast<uint8_t>(*p); }

size_t ScaleBytes(DType type) { return DTypeBytes(type); }

uint32_t GroupOf(const WeightSource& s) { return s.group == 0 ? std::max(s.in, 1u) : s.group; }

uint32_t StoredRow(const WeightSource& s, uint32_t row) {
  return s.row_map.empty() ? s.first_row + row * s.row_step : s.row_map[row];
}

uint32_t ReadScale(const WeightSource& s, size_t index) {
  const std::byte* p = s.scales.data() + index * ScaleBytes(s.scale_type);
  return s.scale_type == DType::kF32 ? Read<uint32_t>(p) : Read<uint16_t>(p);
}

// 16 bytes of nibbles, elements j and j + 16 in byte j.
void SplitNibbles(const std::byte* p, uint8_t* code) {
  for (int j = 0; j < 16; ++j) {
    code[j] = U8(p + j) & 15;
    code[j + 16] = U8(p + j) >> 4;
  }
}

void FifthBits(const std::byte* p, uint8_t* code) {
  const uint32_t bits = Read<uint32_t>(p);
  for (int j = 0; j < 32; ++j) code[j] = static_cast<uint8_t>(code[j] | ((bits >> j & 1) << 4));
}

// Scale and minimum factor (6 bits each) of sub-block j from the 12 packed bytes.
void KFactors(const std::byte* p, uint32_t j, uint8_t* factor) {
  if (j < 4) {
    factor[0] = U8(p + j) & 63;
    factor[1] = U8(p + j + 4) & 63;
  } else {
    factor[0] = static_cast<uint8_t>((U8(p + j + 4) & 15) | (U8(p + j - 4) >> 6 << 4));
    factor[1] = static_cast<uint8_t>((U8(p + j + 4) >> 4) | (U8(p + j) >> 6 << 4));
  }
}

void ReadQ4K(const std::byte* p, uint32_t j, bool five, Block* b) {
  b->super_scale = Read<uint16_t>(p);
  b->super_minimum = Read<uint16_t>(p + 2);
  KFactors(p + 4, j, b->factor);
  const std::byte* nibbles = p + (five ? 48 : 16) + size_t{j / 2} * 32;
  for (int l = 0; l < 32; ++l) {
    b->code[l] = j % 2 == 0 ? U8(nibbles + l) & 15 : U8(nibbles + l) >> 4;
    if (five) b->code[l] = static_cast<uint8_t>(b->code[l] | ((U8(p + 16 + l) >> j & 1) << 4));
  }
}

void ReadQ6K(const std::byte* p, uint32_t j, Block* b) {
  const uint32_t half = j / 4, r = j % 4;
  const std::byte* low = p + 64 * half + 32 * (r % 2);
  const std::byte* high = p + 128 + 32 * half;
  for (int l = 0; l < 32; ++l) {
    const int nibble = r < 2 ? U8(low + l) & 15 : U8(low + l) >> 4;
    b->code[l] = static_cast<uint8_t>(nibble | (U8(high + l) >> (2 * r) & 3) << 4);
  }
  for (uint32_t i = 0; i < 2; ++i) b->factor[i] = U8(p + 192 + 8 * half + 2 * r + i);
  b->super_scale = Read<uint16_t>(p + 208);
}

void ReadGguf(const WeightSource& s, size_t row, uint32_t k, Block* b) {
  const uint32_t unit = GranularityK(s.format) == 256 ? 256 : kGroup;
  const std::byte* p = s.values.data() + (row * (s.in / unit) + k / unit) * GgufBlockBytes(s.format);
  const uint32_t sub = k % 256 / kGroup;
  switch (s.format) {
    case WeightFormat::kMxfp4:
      b->scale = U8(p);
      return SplitNibbles(p + 1, b->code);
    case WeightFormat::kQ4K:
      return ReadQ4K(p, sub, false, b);
    case WeightFormat::kQ5K:
      return ReadQ4K(p, sub, true, b);
    case WeightFormat::kQ6K:
      return ReadQ6K(p, sub, b);
    default:
      break;
  }
  b->scale = Read<uint16_t>(p);
  p += 2;
  if (s.format == WeightFormat::kQ4_1 || s.format == WeightFormat::kQ5_1) {
    b->minimum = Read<uint16_t>(p);
    p += 2;
  }
  if (s.format == WeightFormat::kQ8_0) {
    for (int l = 0; l < 32; ++l) b->code[l] = U8(p + l) ^ 0x80;
  } else if (s.format == WeightFormat::kQ5_0 || s.format == WeightFormat::kQ5_1) {
    SplitNibbles(p + 4, b->code);
    FifthBits(p, b->code);
  } else {
    SplitNibbles(p, b->code);
  }
}

// Bytes of the spans, groups and the range.
absl::Status Expect(const WeightSource& s, std::string_view what, size_t got, size_t want) {
  if (got == want) return absl::OkStatus();
  return InvalidArgument(std::string(WeightFormatName(s.format)) + " matrix [" + std::to_string(s.out) +
                         ", " + std::to_string(s.in) + "]: expected " + std::to_string(want) + " bytes of " +
                         std::string(what) + ", got " + std::to_string(got));
}

absl::Status Refuse(const WeightSource& s, const std::string& why) {
  return InvalidArgument(std::string(WeightFormatName(s.format)) + " matrix [" + std::to_string(s.out) +
                         ", " + std::to_string(s.in) + "]: " + why);
}

size_t CeilDiv(size_t a, size_t b) { return (a + b - 1) / b; }

absl::Status CheckGroups(const WeightSource& s, uint32_t unit) {
  if (s.scale_type != DType::kF32 && s.scale_type != DType::kF16 && s.scale_type != DType::kBf16) {
    return Refuse(s, "scales are F32, F16 or BF16, got " + std::string(DTypeName(s.scale_type)));
  }
  if (GroupOf(s) % unit != 0 && GroupOf(s) < s.in) {
    return Refuse(s, "groups of " + std::to_string(s.group) + " inputs are not supported: a multiple of " +
                         std::to_string(unit) + ", or the whole row");
  }
  return absl::OkStatus();
}

absl::Status CheckRange(const WeightSource& s, uint32_t unit) {
  if (s.first_k > s.in || s.columns() > s.in - s.first_k)
    return Refuse(s, "the range of inputs ends beyond it");
  if (s.first_k % unit != 0 || (s.first_k + s.columns() != s.in && s.columns() % unit != 0)) {
    return Refuse(s, "a range of inputs must not cut a group of " + std::to_string(unit));
  }
  if (s.row_step == 0) return Refuse(s, "a row step of 0");
  if (!s.row_map.empty()) {
    for (uint32_t r : s.row_map) {
      if (r >= s.out) return Refuse(s, "the row map names row " + std::to_string(r));
    }
  } else if (const uint64_t rows = s.rows();
             s.first_row > s.out || (rows > 0 && s.first_row + (rows - 1) * s.row_step >= s.out)) {
    return Refuse(s, "the range of rows ends beyond it");
  }
  return absl::OkStatus();
}

absl::Status CheckFp8(const WeightSource& s) {
  RETURN_IF_ERROR(CheckGroups(s, kBlockKMax));
  const size_t rows = s.scale_rows == 0 ? 1 : CeilDiv(s.out, s.scale_rows);
  RETURN_IF_ERROR(
      Expect(s, "scales", s.scales.size(), rows * CeilDiv(s.in, GroupOf(s)) * ScaleBytes(s.scale_type)));
  RETURN_IF_ERROR(Expect(s, "values", s.values.size(), size_t{s.out} * s.in));
  return CheckRange(s, kBlockKMax);
}

absl::Status CheckInt(const WeightSource& s) {
  RETURN_IF_ERROR(CheckGroups(s, kGroup));
  const size_t groups = CeilDiv(s.in, GroupOf(s));
  RETURN_IF_ERROR(Expect(s, "scales", s.scales.size(), s.out * groups * ScaleBytes(s.scale_type)));
  if (s.layout == WeightSource::Layout::kPlain) {
    if (s.format != WeightFormat::kInt8) return Refuse(s, "has no plain layout");
    RETURN_IF_ERROR(Expect(s, "values", s.values.size(), size_t{s.out} * s.in));
  } else {
    const uint32_t per_word = s.format == WeightFormat::kInt8 ? 4 : 8;
    RETURN_IF_ERROR(Expect(s, "values", s.values.size(), s.out * CeilDiv(s.in, per_word) * 4));
  }
  const bool zeros = s.format == WeightFormat::kInt4Zero;
  RETURN_IF_ERROR(Expect(s, "zero points", s.zeros.size(), zeros ? CeilDiv(s.out, 8) * groups * 4 : 0));
  return CheckRange(s, kGroup);
}

}  // namespace

size_t GgufBlockBytes(WeightFormat f) {
  switch (f) {
    case WeightFormat::kQ8_0:
      return 34;
    case WeightFormat::kQ4_0:
      return 18;
    case WeightFormat::kQ4_1:
      return 20;
    case WeightFormat::kQ5_0:
      return 22;
    case WeightFormat::kQ5_1:
      return 24;
    case WeightFormat::kMxfp4:
      return 17;
    case WeightFormat::kQ4K:
      return 144;
    case WeightFormat::kQ5K:
      return 176;
    case WeightFormat::kQ6K:
      return 210;
    default:
      return 0;
  }
}

uint32_t WeightSource::rows() const {
  if (!row_map.empty()) return static_cast<uint32_t>(row_map.size());
  if (row_count != 0) return row_count;
  return first_row >= out || row_step == 0 ? 0 : (out - first_row + row_step - 1) / row_step;
}

absl::Status CheckSource(const WeightSource& s) {
  using L = WeightSource::Layout;
  if (s.format <= WeightFormat::kF16) {
    if (s.layout != L::kPlain && s.layout != L::kTransposed)
      return Refuse(s, "has a plain or transposed layout only");
    RETURN_IF_ERROR(Expect(s, "values", s.values.size(),
                           size_t{s.out} * s.in * (s.format == WeightFormat::kF32 ? 4 : 2)));
    return CheckRange(s, 1);
  }
  if (s.format == WeightFormat::kFp8) {
    return s.layout == L::kPlain ? CheckFp8(s) : Refuse(s, "has a plain layout only");
  }
  if (s.format <= WeightFormat::kInt4Zero) {
    return s.layout == L::kPlain || s.layout == L::kCompressed ? CheckInt(s)
                                                               : Refuse(s, "is no format of this layout");
  }
  if (s.layout != L::kGguf && !(s.layout == L::kGptOss && s.format == WeightFormat::kMxfp4)) {
    return Refuse(s, "is no format of this layout");
  }
  const uint32_t unit = GranularityK(s.format);
  if (s.in % unit != 0) return Refuse(s, "inputs are no multiple of " + std::to_string(unit));
  if (s.layout == L::kGptOss) {
    RETURN_IF_ERROR(Expect(s, "scales", s.scales.size(), size_t{s.out} * (s.in / kGroup)));
    RETURN_IF_ERROR(Expect(s, "values", s.values.size(), size_t{s.out} * (s.in / 2)));
  } else {
    RETURN_IF_ERROR(
        Expect(s, "values", s.values.size(), size_t{s.out} * (s.in / unit) * GgufBlockBytes(s.format)));
  }
  return CheckRange(s, unit);
}

void ReadBlock(const WeightSource& s, const RawLayout& layout, uint32_t part_row, uint32_t part_k, Block* b) {
  const size_t row = StoredRow(s, part_row), k = s.first_k + part_k;
  const size_t n = std::min<size_t>(layout.block_k, s.in - k);
  if (s.layout == WeightSource::Layout::kGguf) return ReadGguf(s, row, static_cast<uint32_t>(k), b);
  if (s.layout == WeightSource::Layout::kGptOss) {
    const std::byte* p = s.values.data() + (row * s.in + k) / 2;
    for (int l = 0; l < 16; ++l) {
      b->code[2 * l] = U8(p + l) & 15;
      b->code[2 * l + 1] = U8(p + l) >> 4;
    }
    b->scale = U8(s.scales.data() + (row * s.in + k) / kGroup);
    return;
  }
  const size_t groups = CeilDiv(s.in, GroupOf(s)), group = k / GroupOf(s);
  if (s.format == WeightFormat::kFp8) {
    std::memcpy(b->code, s.values.data() + row * s.in + k, n);
    std::memset(b->code + n, 0, layout.block_k - n);
    const uint32_t bits = ReadScale(s, (s.scale_rows == 0 ? 0 : row / s.scale_rows) * groups + group);
    b->scale = s.scale_type == DType::kF32 ? bits
               : s.scale_type == DType::kBf16
                   ? bits << 16
                   : __builtin_bit_cast(uint32_t, numerics::FromF16(static_cast<uint16_t>(bits)));
    return;
  }
  b->scale = ReadScale(s, row * groups + group);
  if (s.format == WeightFormat::kInt4Zero) {
    const uint32_t word = Read<uint32_t>(s.zeros.data() + (row / 8 * groups + group) * 4);
    b->zero = static_cast<uint8_t>(word >> (row % 8 * 4) & 15);
  }
  std::memset(b->code, layout.bias + b->zero, layout.block_k);
  if (s.layout == WeightSource::Layout::kPlain) {
    for (size_t i = 0; i < n; ++i) b->code[i] = U8(s.values.data() + row * s.in + k + i) ^ 0x80;
  } else if (s.format == WeightFormat::kInt8) {
    std::memcpy(b->code, s.values.data() + row * CeilDiv(s.in, 4) * 4 + k, n);
  } else {
    const std::byte* p = s.values.data() + row * CeilDiv(s.in, 8) * 4;
    for (size_t i = 0; i < n; ++i) b->code[i] = U8(p + (k + i) / 2) >> ((k + i) % 2 * 4) & 15;
  }
}

float E8m0Half(uint8_t e) {
  return __builtin_bit_cast(float, e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

float Fp8Value(uint8_t code) {
  const uint32_t magnitude = code & 0x7F;
  if (magnitude == kFp8Nan) return __builtin_nanf("");
  // The same fields lie 2^120 lower in f32 (bias 127 against 7), denormals too.
  return __builtin_bit_cast(float, static_cast<uint32_t>(code & 0x80) << 24 | magnitude << 20) * 0x1p120f;
}

Affine ElementOf(const RawLayout& layout, const Block& b, uint32_t i) {
  using numerics::FromF16;
  Affine a;
  a.q = layout.code == RawCode::k4Table ? kFp4Codes[b.code[i]] : b.code[i];
  a.q -= static_cast<int32_t>(layout.bias) + (layout.tail == RawTail::kZero ? b.zero : 0);
  switch (layout.scale) {
    case RawScale::kF16:
      a.scale = FromF16(static_cast<uint16_t>(b.scale));
      break;
    case RawScale::kBf16:
      a.scale = numerics::FromBf16(static_cast<uint16_t>(b.scale));
      break;
    case RawScale::kF32:
      a.scale = __builtin_bit_cast(float, b.scale);
      break;
    case RawScale::kE8m0:
      a.scale = E8m0Half(static_cast<uint8_t>(b.scale));
      break;
    case RawScale::kK:
      a.scale = FromF16(b.super_scale) * static_cast<float>(b.factor[0]);
      a.minimum = -(FromF16(b.super_minimum) * static_cast<float>(b.factor[1]));
      return a;
    case RawScale::kK6:
      a.scale = FromF16(b.super_scale) * static_cast<float>(static_cast<int8_t>(b.factor[i / 16]));
      return a;
    case RawScale::kNone:
      break;
  }
  if (layout.tail == RawTail::kMin) a.minimum = FromF16(b.minimum);
  return a;
}

float BlockValue(const RawLayout& layout, const Block& b, uint32_t i) {
  if (layout.code == RawCode::kFp8) return Fp8Value(b.code[i]) * __builtin_bit_cast(float, b.scale);
  return ElementOf(layout, b, i).value();
}

absl::Status CheckBlock(const RawLayout& layout, const Block& b) {
  if (layout.scale == RawScale::kE8m0) {
    if (b.scale <= kE8m0Max) return absl::OkStatus();
    return InvalidArgument("an E8M0 scale of " + std::to_string(b.scale) + " is no weight's");
  }
  const float most = layout.code == RawCode::kFp8 ? kFp8ScaleMax : kScaleMax;
  for (uint32_t i : {0u, 16u}) {
    const Affine a = ElementOf(layout, b, i);
    if (!(std::abs(a.scale) < most) || !(std::abs(a.minimum) < most)) {
      return InvalidArgument("a scale of " + std::to_string(a.scale) + " (minimum " +
                             std::to_string(a.minimum) + ") is no weight's");
    }
  }
  if (layout.code == RawCode::kFp8) {
    for (uint8_t c : b.code) {
      if ((c & 0x7F) == kFp8Nan) return InvalidArgument("an fp8 weight is no number");
    }
  }
  return absl::OkStatus();
}

}  // namespace consilium::kernels
