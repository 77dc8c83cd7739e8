// libFuzzer target: cmake -DCONSILIUM_FUZZ=ON with clang, then build/bin/tokenizer_fuzz
// tests/fuzz/corpus/tokenizer
#include "tests/fuzz/tokenizer_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzTokenizer(data, size);
  return 0;
}
