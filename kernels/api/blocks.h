// One column's block of a quantised matrix between a checkpoint's layout and a panel's. Private to
// kernels/api.
#pragma once
#include <cstdint>

#include "kernels/api/numerics.h"
#include "kernels/api/weights.h"

namespace consilium::kernels {

inline constexpr uint32_t kBlockKMax = 128;

// The codes lie as they do in a panel's column (raw_layout.h): a checkpoint's bytes become these words some
// at a time, never code by code.
struct Block {
  uint32_t word[kBlockKMax / 4] = {};
  uint32_t high[2] = {};   // k5: fifth bits; k6: upper bits of either half; k2, k3: pairs
  uint32_t scale = 0;      // bits, of the layout's scale type
  uint16_t minimum = 0;    // f16
  uint8_t zero = 0;        // zero point
  uint8_t factor[2] = {};  // kK: of d, of dmin; kK6, kK2: of either half; kKS: one
  uint16_t super_scale = 0, super_minimum = 0;  // f16
};

// Words of a block's codes in a column, the high bits apart.
constexpr uint32_t CodeWords(RawCode code) {
  if (code == RawCode::k2) return 0;
  if (code == RawCode::k3) return 1;
  return code == RawCode::kFp8 ? kBlockKMax / 4 : code == RawCode::k8 ? kGroup / 4 : kGroup / 8;
}

// OK, or INVALID_ARGUMENT: what no weight can be.
absl::Status CheckBlock(const RawLayout& layout, const Block& block);

// A weight's integer, scale and minimum: value = fma(q, scale, minimum), minimum +0 in symmetric formats.
struct Affine {
  int32_t q = 0;
  float scale = 0;
  float minimum = 0;
  float value() const { return numerics::Fma(static_cast<float>(q), scale, minimum); }
};
uint8_t CodeOf(RawCode code, const Block& block, uint32_t i);
Affine ElementOf(const RawLayout& layout, const Block& block, uint32_t i);
float BlockValue(const RawLayout& layout, const Block& block, uint32_t i);  // fp8: round(value * scale)
// The first n values of a block: the same bits, by plain products where they are exact.
void BlockValues(const RawLayout& layout, const Block& block, uint32_t n, float* out);
inline float Fp8Value(uint8_t code) {  // E4M3: exact
  const uint32_t magnitude = code & 0x7F;
  // The same fields lie 2^120 lower in f32 (bias 127 against 7), denormals too.
  const float value =
      __builtin_bit_cast(float, static_cast<uint32_t>(code & 0x80) << 24 | magnitude << 20) * 0x1p120f;
  return magnitude == 0x7F ? __builtin_nanf("") : value;
}
float E8m0Half(uint8_t exponent);  // 2^(exponent - 128)

// Where block b of a panel lies.
struct PanelPlaces {
  std::byte* super;  // super header
  std::byte* header;
  std::byte* high;  // fifth or upper bits
  std::byte* codes;
};
PanelPlaces PlacesIn(const RawLayout& layout, std::byte* panel, uint32_t b);
// The block as it lies in a panel.
void LoadBlock(const RawLayout& layout, const std::byte* panel, uint32_t b, uint32_t column, Block* block);

}  // namespace consilium::kernels
