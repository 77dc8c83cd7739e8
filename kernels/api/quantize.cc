// Our own int8 and int4: groups of 32, symmetric. Scale = largest magnitude / 127 (or 7), rounded to its
// type; codes are the nearest integers to w / scale, ties to even.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "kernels/api/blocks.h"

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

absl::Status QuantizeBlock(const RawLayout& layout, DType type, const float* w, uint32_t n, Block* block,
                           QuantError* error) {
  const float most = layout.code == RawCode::k8 ? 127.0f : 7.0f;
  float largest = 0;
  for (uint32_t i = 0; i < n; ++i) {
    if (!std::isfinite(w[i])) return InvalidArgument("a weight to quantise is not finite");
    largest = std::max(largest, std::abs(w[i]));
  }
  std::fill(block->code, block->code + kGroup, static_cast<uint8_t>(layout.bias));
  block->scale = ScaleBits(type, largest / most);
  const float scale = ElementOf(layout, *block, 0).scale;
  RETURN_IF_ERROR(CheckBlock(layout, *block));
  for (uint32_t i = 0; i < n; ++i) {
    const float q = scale > 0 ? std::clamp(std::nearbyint(w[i] / scale), -most, most) : 0.0f;
    block->code[i] = static_cast<uint8_t>(static_cast<int>(q) + static_cast<int>(layout.bias));
    const double off = std::abs(static_cast<double>(w[i]) - ElementOf(layout, *block, i).value());
    error->squared += off * off;
    error->reference += static_cast<double>(w[i]) * w[i];
    error->largest = std::max(error->largest, off);
  }
  return absl::OkStatus();
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
  std::vector<float> row(m.in);
  Block block;
  for (uint32_t r = 0; r < m.out; ++r) {
    DequantizeRow(s, r, row.data());
    std::byte* panel = m.data.get() + r / kPanelColumns * layout.panel_bytes;
    for (uint32_t k = 0; k < m.in; k += kGroup) {
      RETURN_IF_ERROR(
          QuantizeBlock(layout, scale_type, row.data() + k, std::min(kGroup, m.in - k), &block, error));
      WriteBlock(layout, block, k / kGroup, r % kPanelColumns, panel);
    }
  }
  return m;
}

}  // namespace consilium::kernels
