// libFuzzer target: cmake -DCONSILIUM_FUZZ=ON with clang, then build/bin/safetensors_fuzz
// tests/fuzz/corpus/safetensors
#include "tests/fuzz/model_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzSafetensors(data, size);
  return 0;
}
