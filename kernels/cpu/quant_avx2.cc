#define CONSILIUM_TARGET avx2
#include "kernels/cpu/ilanes_avx2.h"
// The lanes come first.
#include "kernels/cpu/body_i8.h"
#include "kernels/cpu/body_quant.h"

namespace consilium::kernels {

const RawQuantOps kAvx2Quant = {avx2::QuantGemm, avx2::GemmI8, avx2::QuantizeRows};

}  // namespace consilium::kernels
