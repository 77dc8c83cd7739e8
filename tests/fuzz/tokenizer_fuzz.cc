// libFuzzer target; scripts/fuzz tokenizer builds and runs it.
#include "tests/fuzz/tokenizer_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  consilium::FuzzTokenizer(data, size);
  return 0;
}
