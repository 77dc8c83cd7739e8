// One column's block of a quantised matrix between a checkpoint's layout and a panel's. Private to
// kernels/api.
#pragma once
#include <cstdint>

#include "kernels/api/numerics.h"
#include "kernels/api/weights.h"

namespace consilium::kernels {

inline constexpr uint32_t kBlockKMax = 128;

struct Block {
  uint8_t code[kBlockKMax] = {};
  uint32_t scale = 0;                           // bits, of the layout's scale type
  uint16_t minimum = 0;                         // f16
  uint8_t zero = 0;                             // zero point
  uint8_t factor[2] = {};                       // kK: of d, of dmin; kK6: int8 of either half
  uint16_t super_scale = 0, super_minimum = 0;  // f16
};

// The `layout.block_k` codes from input k (of the part) on of row `row` (of the part) and their scales. Codes
// beyond the row are those of a zero.
void ReadBlock(const WeightSource& source, const RawLayout& layout, uint32_t row, uint32_t k, Block* block);
// OK, or INVALID_ARGUMENT: what no weight can be.
absl::Status CheckBlock(const RawLayout& layout, const Block& block);
void WriteBlock(const RawLayout& layout, const Block& block, uint32_t b, uint32_t column, std::byte* panel);

// A weight's integer, scale and minimum: value = fma(q, scale, minimum), minimum +0 in symmetric formats.
struct Affine {
  int32_t q = 0;
  float scale = 0;
  float minimum = 0;
  float value() const { return numerics::Fma(static_cast<float>(q), scale, minimum); }
};
Affine ElementOf(const RawLayout& layout, const Block& block, uint32_t i);
float BlockValue(const RawLayout& layout, const Block& block, uint32_t i);  // fp8: round(value * scale)
float Fp8Value(uint8_t code);                                               // E4M3: exact
float E8m0Half(uint8_t exponent);                                           // 2^(exponent - 128)
// The block as it lies in a panel: for the reference.
void LoadBlock(const RawLayout& layout, const std::byte* panel, uint32_t b, uint32_t column, Block* block);

}  // namespace consilium::kernels
