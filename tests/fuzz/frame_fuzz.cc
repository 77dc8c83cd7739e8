// libFuzzer target; scripts/fuzz frame builds and runs it.
#include "tests/fuzz/frame_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static consilium::BufferPool pool;  // a fuzzer has no main to own it
  consilium::FuzzFrame(data, size, &pool);
  return 0;
}
