#define CONSILIUM_TARGET avx512
#include "kernels/cpu/ilanes_avx512.h"
// The lanes come first.
#include "kernels/cpu/body_quant.h"

namespace consilium::kernels {

const RawQuantOps kAvx512Quant = {avx512::QuantGemm, nullptr, nullptr};  // dispatch.cc completes it

}  // namespace consilium::kernels
