// libFuzzer target: cmake -DCONSILIUM_FUZZ=ON with clang, then build/bin/gguf_fuzz tests/fuzz/corpus/gguf
#include "tests/fuzz/model_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzGguf(data, size);
  return 0;
}
