// libFuzzer target; scripts/fuzz config builds and runs it.
#include "tests/fuzz/model_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzConfig(data, size);
  return 0;
}
