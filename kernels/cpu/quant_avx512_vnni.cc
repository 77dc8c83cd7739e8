#define CONSILIUM_TARGET avx512
#include "kernels/cpu/ilanes_avx512.h"
// The lanes come first.
#include "kernels/cpu/body_i8.h"

namespace consilium::kernels {

const RawQuantOps kAvx512VnniQuant = {nullptr, avx512::GemmI8, avx512::QuantizeRows};

}  // namespace consilium::kernels
