#include "kernels/cpu/lanes_scalar.h"
#define CONSILIUM_TARGET scalar
#define CONSILIUM_TABLE kScalarRaw
#include "kernels/cpu/body.h"
