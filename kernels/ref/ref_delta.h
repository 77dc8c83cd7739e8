// The gated delta rule as plain loops: the definition of its bits.
#pragma once
#include "kernels/cpu/raw_delta.h"

namespace consilium::kernels {

void RefDelta(const DeltaRule& d);

}  // namespace consilium::kernels
