// libFuzzer target: cmake -DCONSILIUM_FUZZ=ON with clang, then build/bin/config_fuzz tests/fuzz/corpus/config
#include "tests/fuzz/model_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzConfig(data, size);
  return 0;
}
