// libFuzzer target of the frame codec: cmake -DCONSILIUM_FUZZ=ON with clang, then
//   build/bin/frame_fuzz tests/fuzz/corpus/frames
#include "tests/fuzz/frame_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static consilium::BufferPool pool;  // a fuzzer has no main to own it
  consilium::FuzzFrame(data, size, &pool);
  return 0;
}
