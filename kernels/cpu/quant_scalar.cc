#define CONSILIUM_TARGET scalar
#include "kernels/cpu/ilanes_scalar.h"
// The lanes come first.
#include "kernels/cpu/body_i8.h"
#include "kernels/cpu/body_quant.h"

namespace consilium::kernels {

const RawQuantOps kScalarQuant = {scalar::QuantGemm, scalar::GemmI8, scalar::QuantizeRows};

}  // namespace consilium::kernels
