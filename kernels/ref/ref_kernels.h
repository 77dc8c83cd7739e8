// The scalar reference: plain loops that define the bits of class `f32`.
#pragma once
#include "kernels/api/kernels.h"

namespace consilium::kernels {

extern const Ops kRefOps;

}  // namespace consilium::kernels
