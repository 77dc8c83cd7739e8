#include "kernels/api/read_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "common/base/status.h"

namespace consilium::kernels {
namespace {

uint32_t GroupOf(const WeightSource& s) { return s.group == 0 ? std::max(s.in, 1u) : s.group; }

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
      Expect(s, "scales", s.scales.size(), rows * CeilDiv(s.in, GroupOf(s)) * DTypeBytes(s.scale_type)));
  RETURN_IF_ERROR(Expect(s, "values", s.values.size(), size_t{s.out} * s.in));
  return CheckRange(s, kBlockKMax);
}

absl::Status CheckInt(const WeightSource& s) {
  RETURN_IF_ERROR(CheckGroups(s, kGroup));
  const size_t groups = CeilDiv(s.in, GroupOf(s));
  RETURN_IF_ERROR(Expect(s, "scales", s.scales.size(), s.out * groups * DTypeBytes(s.scale_type)));
  if (s.layout == WeightSource::Layout::kWords && s.in % kGroup != 0) {
    return Refuse(s, "inputs are no multiple of " + std::to_string(kGroup));
  }
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
    const bool fits = s.layout == L::kPlain || s.layout == L::kCompressed || s.layout == L::kWords;
    return fits ? CheckInt(s) : Refuse(s, "is no format of this layout");
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

size_t GroupsOf(const WeightSource& s) { return CeilDiv(s.in, GroupOf(s)); }

RowPlace PlaceOf(const WeightSource& s, uint32_t part_row) {
  const size_t row = s.row_map.empty() ? s.first_row + size_t{part_row} * s.row_step : s.row_map[part_row];
  RowPlace r;
  size_t bytes = s.in;
  r.zero_shift = row % 8 * 4;
  if (s.layout == SourceLayout::kWords) {
    r.scales = s.scales.data() + row * DTypeBytes(s.scale_type);
    if (s.format == WeightFormat::kInt4Zero) r.zeros = s.zeros.data() + row / 8 * 4;
    r.values = s.values.data() + row * 4;
    return r;
  }
  if (s.layout == SourceLayout::kGguf) {
    bytes = s.in / (GranularityK(s.format) == 256 ? 256 : kGroup) * GgufBlockBytes(s.format);
  } else if (s.layout == SourceLayout::kGptOss) {
    bytes = s.in / 2;
    r.scales = s.scales.data() + row * (s.in / kGroup);
  } else {
    if (s.layout == SourceLayout::kCompressed)
      bytes = CeilDiv(s.in, s.format == WeightFormat::kInt8 ? 4 : 8) * 4;
    size_t scale_row = row;
    if (s.format == WeightFormat::kFp8) scale_row = s.scale_rows == 0 ? 0 : row / s.scale_rows;
    r.scales = s.scales.data() + scale_row * GroupsOf(s) * DTypeBytes(s.scale_type);
    if (s.format == WeightFormat::kInt4Zero) r.zeros = s.zeros.data() + row / 8 * GroupsOf(s) * 4;
  }
  r.values = s.values.data() + row * bytes;
  return r;
}

float E8m0Half(uint8_t e) {
  return __builtin_bit_cast(float, e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

uint8_t CodeOf(RawCode code, const Block& b, uint32_t i) {
  const uint32_t byte = 8 * (i % 4);
  if (code == RawCode::k8 || code == RawCode::kFp8) return static_cast<uint8_t>(b.word[i / 4] >> byte);
  if (code == RawCode::k2 || code == RawCode::k3) {
    const uint32_t two = b.high[i / 16] >> (byte + 2 * (i % 16 / 4)) & 3;
    return static_cast<uint8_t>(code == RawCode::k2 ? two : two | (b.word[0] >> (byte + i / 4) & 1) << 2);
  }
  uint32_t v = b.word[i / 8] >> (byte + i % 8 / 4 * 4) & 15;
  if (code == RawCode::k5) v |= (b.high[0] >> (byte + i / 4) & 1) << 4;
  if (code == RawCode::k6) v |= (b.high[i / 16] >> (byte + 2 * (i % 16 / 4)) & 3) << 4;
  return static_cast<uint8_t>(v);
}

namespace {

// The weight's integer.
int32_t IntegerOf(const RawLayout& layout, const Block& b, uint32_t i) {
  const uint8_t code = CodeOf(layout.code, b, i);
  const int32_t q = layout.code == RawCode::k4Table ? kFp4Codes[code]
                    : layout.code == RawCode::k4Iq  ? kIq4Codes[code]
                                                    : code;
  return q - static_cast<int32_t>(layout.bias) - (layout.tail == RawTail::kZero ? b.zero : 0);
}

}  // namespace

Affine ElementOf(const RawLayout& layout, const Block& b, uint32_t i) {
  using numerics::FromF16;
  Affine a;
  a.q = IntegerOf(layout, b, i);
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
    case RawScale::kKS:
      a.scale = FromF16(b.super_scale) * static_cast<float>(static_cast<int8_t>(b.factor[0]));
      return a;
    case RawScale::kK2:
      a.scale = FromF16(b.super_scale) * static_cast<float>(b.factor[i / 16] & 15);
      a.minimum = -(FromF16(b.super_minimum) * static_cast<float>(b.factor[i / 16] >> 4));
      return a;
    case RawScale::kNone:
      break;
  }
  if (layout.tail == RawTail::kMin) a.minimum = FromF16(b.minimum);
  return a;
}

float BlockValue(const RawLayout& layout, const Block& b, uint32_t i) {
  if (layout.code == RawCode::kFp8) {
    return Fp8Value(CodeOf(layout.code, b, i)) * __builtin_bit_cast(float, b.scale);
  }
  return ElementOf(layout, b, i).value();
}

void BlockValues(const RawLayout& layout, const Block& b, uint32_t n, float* out) {
  if (layout.code == RawCode::kFp8) {
    uint8_t code[kBlockKMax];
    std::memcpy(code, b.word, sizeof code);
    const float scale = __builtin_bit_cast(float, b.scale);
    for (uint32_t i = 0; i < n; ++i) out[i] = Fp8Value(code[i]) * scale;
    return;
  }
  for (uint32_t first = 0; first < n; first += 16) {
    const Affine a = ElementOf(layout, b, first);
    for (uint32_t i = first; i < std::min(n, first + 16); ++i) {
      const int32_t q = IntegerOf(layout, b, i);
      // Where there is a minimum q * s is exact, elsewhere it is +0: one rounding either way, as in the fma.
      out[i] = static_cast<float>(q) * a.scale + a.minimum;
    }
  }
}

absl::Status CheckBlock(const RawLayout& layout, const Block& b) {
  if (Plausible(layout, b)) return absl::OkStatus();
  if (layout.scale == RawScale::kE8m0) {
    return InvalidArgument("an E8M0 scale of " + std::to_string(b.scale) + " is no weight's");
  }
  const Affine a = ElementOf(layout, b, 0);
  if (layout.code == RawCode::kFp8 && std::abs(a.scale) < kFp8ScaleMax) {
    return InvalidArgument("an fp8 weight is no number");
  }
  return InvalidArgument("a scale of " + std::to_string(a.scale) + " (minimum " + std::to_string(a.minimum) +
                         ") is no weight's");
}

}  // namespace consilium::kernels
