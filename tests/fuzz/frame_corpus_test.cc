// Replays the fuzzer's corpus, so that what it once found stays fixed.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "common/net/frame_samples.h"
#include "tests/fuzz/frame_target.h"

namespace consilium {
namespace {

TEST(FrameCorpus, EveryInputIsDecodedOrRefusedWithoutACrash) {
  BufferPool pool;
  int inputs = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(CONSILIUM_SOURCE_DIR) + "/tests/fuzz/corpus/frames")) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    FuzzFrame(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), &pool);
    ++inputs;
  }
  EXPECT_GE(inputs, 12) << "the corpus has at least one frame of every kind";
  EXPECT_EQ(pool.live_buffers(), 0u);
}

TEST(FrameCorpus, TheSampleFramesPassTheTarget) {
  BufferPool pool;
  for (const auto& [name, buffer] : SampleFrames(&pool)) {
    FuzzFrame(reinterpret_cast<const uint8_t*>(buffer.data()), buffer.size(), &pool);
  }
}

}  // namespace
}  // namespace consilium
