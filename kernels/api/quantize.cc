// Our own int8 and int4: groups of 32, symmetric. Scale = largest magnitude / 127 (or 7), rounded to its
// type; codes are the nearest integers to w / scale, ties to even.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "common/base/status.h"
#include "kernels/api/panel_block.h"
#include "kernels/api/read_block.h"

namespace consilium::kernels {
namespace {

uint16_t ToBf16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Nearest, ties to even; magnitudes from 65520 on give infinity.
uint16_t ToF16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float a = std::abs(x);
  if (!(a < 65520.0f)) return sign | 0x7C00;
  if (a < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(a * 0x1p24f)));
  const uint32_t m = bits & 0x7FFFFFFF;
  return static_cast<uint16_t>(sign | ((m + 0xFFF + (m >> 13 & 1) - (112u << 23)) >> 13));
}

uint32_t ScaleBits(DType type, float s) {
  return type == DType::kF32 ? __builtin_bit_cast(uint32_t, s) : type == DType::kBf16 ? ToBf16(s) : ToF16(s);
}

typedef int32_t Ints __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));

// Sums in four lanes, by the input modulo 4: of one shape for every matrix.
struct Errors {
  Doubles squared[2] = {}, reference[2] = {}, largest[2] = {};
  void Add(const float* w, const float* value) {  // of a group
    alignas(16) double wide[kGroup], off[kGroup];
    for (uint32_t i = 0; i < kGroup; ++i) wide[i] = w[i];
    for (uint32_t i = 0; i < kGroup; ++i) off[i] = wide[i] - static_cast<double>(value[i]);
    Errors e = *this;
    for (uint32_t i = 0; i < kGroup; i += 4) {
#pragma GCC unroll 2
      for (uint32_t h = 0; h < 2; ++h) {
        Doubles x, y;
        std::memcpy(&x, wide + i + 2 * h, sizeof x);
        std::memcpy(&y, off + i + 2 * h, sizeof y);
        e.squared[h] += y * y;
        e.reference[h] += x * x;
        y = y < 0 ? -y : y;
        e.largest[h] = y > e.largest[h] ? y : e.largest[h];
      }
    }
    *this = e;
  }
};

// The largest magnitude of a group; an infinity or NaN if there is one.
float Largest(const float* w) {
  Ints most = {};
  for (uint32_t i = 0; i < kGroup; i += 4) {
    Ints bits;
    std::memcpy(&bits, w + i, sizeof bits);
    bits &= 0x7FFFFFFF;  // magnitudes compare as their bits do
    most = bits > most ? bits : most;
  }
  return __builtin_bit_cast(float, std::max(std::max(most[0], most[1]), std::max(most[2], most[3])));
}

// x to the nearest integer, ties to even; |x| < 2^22.
float Nearest(float x) { return (x + numerics::kRoundMagic) - numerics::kRoundMagic; }

// Integers and values of a group (the rest of a ragged one 0) at its scale. Only where the scale was rounded
// down a lot, among the denormals of f16, does the largest of them need the clamp.
void Integers(const float* w, float scale, float largest, float most, int32_t* integer, float* value) {
  if (!(scale > 0)) {
    for (uint32_t i = 0; i < kGroup; ++i) integer[i] = 0, value[i] = 0;
    return;
  }
  const bool clamp = largest / scale >= most + 0.5f;
  for (uint32_t i = 0; i < kGroup; ++i) value[i] = w[i] / scale;
  if (clamp) {
    for (uint32_t i = 0; i < kGroup; ++i) value[i] = std::clamp(value[i], -most, most);
  }
  for (uint32_t i = 0; i < kGroup; ++i) value[i] = Nearest(value[i]);
  for (uint32_t i = 0; i < kGroup; ++i) integer[i] = static_cast<int32_t>(value[i]);
  for (uint32_t i = 0; i < kGroup; ++i) value[i] *= scale;
}

absl::Status QuantizeGroup(const RawLayout& layout, DType type, const float* w, Block* block,
                           Errors* errors) {
  const float most = layout.code == RawCode::k8 ? 127.0f : 7.0f;
  const float largest = Largest(w);
  if (!std::isfinite(largest)) return InvalidArgument("a weight to quantise is not finite");
  block->scale = ScaleBits(type, largest / most);
  if (!Plausible(layout, *block)) return CheckBlock(layout, *block);
  const float scale = __builtin_bit_cast(float, WideScale(type, block->scale));
  alignas(16) int32_t integer[kGroup];
  alignas(16) float value[kGroup];
  alignas(16) uint8_t code[kGroup];
  Integers(w, scale, largest, most, integer, value);
  for (uint32_t i = 0; i < kGroup; ++i)
    code[i] = static_cast<uint8_t>(integer[i] + static_cast<int32_t>(layout.bias));
  errors->Add(w, value);
  if (layout.code == RawCode::k8) {
    std::memcpy(block->word, code, sizeof code);
  } else {
    for (uint32_t t = 0; t < kGroup / 8; ++t) {
      block->word[t] = FoldNibbles(LoadAs<uint64_t>(reinterpret_cast<const std::byte*>(code) + 8 * t));
    }
  }
  return absl::OkStatus();
}

constexpr uint32_t kPieceK = 512;  // inputs widened at a time: a multiple of every format's unit

// Columns of one panel from rows `first` on.
template <RawCode kCode>
absl::Status QuantizePanel(const WeightSource& s, const RawLayout& layout, DType type, uint32_t first,
                           uint32_t count, std::byte* panel, Errors* errors) {
  float wide[kPieceK];
  Block block;
  for (uint32_t k = 0; k < s.columns(); k += kPieceK) {
    WeightSource piece = s;
    piece.first_k = s.first_k + k;
    piece.count_k = std::min(kPieceK, s.columns() - k);
    for (uint32_t c = 0; c < count; ++c) {
      DequantizeRow(piece, first + c, wide);
      std::fill(wide + piece.count_k, wide + (piece.count_k + kGroup - 1) / kGroup * kGroup, 0.0f);
      for (uint32_t g = 0; g < piece.count_k; g += kGroup) {
        RETURN_IF_ERROR(QuantizeGroup(layout, type, wide + g, &block, errors));
        WriteBlock<kCode>(layout, block, PlacesIn(layout, panel, (k + g) / kGroup), c);
      }
    }
  }
  return absl::OkStatus();
}

void AddTo(const Errors& from, QuantError* to) {
  for (int i = 0; i < 4; ++i) {
    to->squared += from.squared[i / 2][i % 2];
    to->reference += from.reference[i / 2][i % 2];
    to->largest = std::max(to->largest, from.largest[i / 2][i % 2]);
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> PackQuantized(const WeightSource& s, WeightFormat target, DType scale_type,
                                           QuantError* error) {
  RETURN_IF_ERROR(CheckSource(s));
  if (target != WeightFormat::kInt8 && target != WeightFormat::kInt4) {
    return InvalidArgument("weights are quantised to INT8 or INT4, not to " +
                           std::string(WeightFormatName(target)));
  }
  if (scale_type != DType::kF32 && scale_type != DType::kF16 && scale_type != DType::kBf16) {
    return InvalidArgument("scales are F32, F16 or BF16, not " + std::string(DTypeName(scale_type)));
  }
  PackedMatrix m;
  m.out = s.rows();
  m.in = s.columns();
  m.format = target;
  m.scale = scale_type;
  m.data = AllocateFresh(m.bytes());
  const RawLayout layout = m.layout();
  Errors errors;
  for (uint32_t first = 0; first < m.out; first += kPanelColumns) {
    std::byte* panel = m.data.get() + first / kPanelColumns * layout.panel_bytes;
    const uint32_t count = std::min(kPanelColumns, m.out - first);
    RETURN_IF_ERROR(target == WeightFormat::kInt8
                        ? QuantizePanel<RawCode::k8>(s, layout, scale_type, first, count, panel, &errors)
                        : QuantizePanel<RawCode::k4>(s, layout, scale_type, first, count, panel, &errors));
  }
  AddTo(errors, error);
  return m;
}

}  // namespace consilium::kernels
