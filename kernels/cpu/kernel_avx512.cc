#include "kernels/cpu/lanes_avx512.h"
#define CONSILIUM_TARGET avx512
#define CONSILIUM_TABLE kAvx512Raw
#include "kernels/cpu/body.h"
