// libFuzzer target; scripts/fuzz safetensors builds and runs it.
#include "tests/fuzz/model_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzSafetensors(data, size);
  return 0;
}
