// The scalar reference of packed weights and of class i8g32 (docs/NUMERICS.md).
#pragma once
#include "kernels/api/kernels.h"

namespace consilium::kernels {

// Quantises rows of `n` floats into rows of QuantRowBytes(n).
void RefQuantizeRows(ConstRows x, uint32_t n, std::byte* out);
void RefGemmI8(const PackedMatrix& w, QuantRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
               const float* bias);

}  // namespace consilium::kernels
