#include "kernels/cpu/lanes_avx2.h"
#define CONSILIUM_TARGET avx2
#define CONSILIUM_TABLE kAvx2Raw
#include "kernels/cpu/body.h"
