// Replays the corpora of the model-file fuzzers, so that what they once found stays fixed.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/model_targets.h"
#include "tests/fuzz/tokenizer_target.h"

namespace consilium {
namespace {

// Runs `target` over a folder of inputs; returns how many there were.
int Replay(const std::string& corpus, void (*target)(const uint8_t*, size_t)) {
  int inputs = 0;
  const std::string dir = std::string(CONSILIUM_SOURCE_DIR) + "/tests/fuzz/corpus/" + corpus;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    target(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    ++inputs;
  }
  return inputs;
}

TEST(ModelCorpus, EverySafetensorsInputIsReadOrRefused) {
  EXPECT_GE(Replay("safetensors", FuzzSafetensors), 4);
}
TEST(ModelCorpus, EveryGgufInputIsReadOrRefused) { EXPECT_GE(Replay("gguf", FuzzGguf), 4); }
TEST(ModelCorpus, EveryConfigIsReadOrRefused) { EXPECT_GE(Replay("config", FuzzConfig), 4); }
TEST(ModelCorpus, EveryTokenizerIsReadOrRefused) { EXPECT_GE(Replay("tokenizer", FuzzTokenizer), 2); }

}  // namespace
}  // namespace consilium
