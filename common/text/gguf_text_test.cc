// Tokenizers made from GGUF metadata: text is cut as the files' pre-tokenizers say
// (testdata/pretokenizers.json, recorded by another engine), and SentencePiece vocabularies fall back to
// bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "common/base/status.h"
#include "common/model/gguf_pretokenizers.h"
#include "common/model/gguf_tokenizer.h"
#include "common/text/text.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

const Json& Recorded() {
  static const Json all =
      Json::parse(std::ifstream(CONSILIUM_SOURCE_DIR "/common/text/testdata/pretokenizers.json"));
  return all;
}

// The visible characters that byte-level vocabularies write bytes as.
std::string Visible(std::string_view bytes) {
  std::string out;
  for (unsigned char b : bytes) {
    const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    uint32_t c = b;
    if (!plain) {  // 256 + its number among those
      c = 256;
      for (unsigned other = 0; other < b; ++other)
        c += !((other >= 33 && other <= 126) || (other >= 161 && other <= 172) || other >= 174);
    }
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else {
      out += static_cast<char>(0xC0 | c >> 6);
      out += static_cast<char>(0x80 | (c & 0x3F));
    }
  }
  return out;
}

class PreTokenizer : public ::testing::TestWithParam<std::string> {};

// Every recorded piece is a token and merges are ignored, so a text's tokens are its pieces; any other cut
// gives other tokens.
TEST_P(PreTokenizer, CutsAwkwardTextAsRecorded) {
  const std::string& pre = GetParam();
  const Json& all = Recorded().at("pieces").at(pre);
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) tokens.push_back(Visible(std::string(1, static_cast<char>(b))));
  std::map<std::string, TokenId> ids;
  for (const std::string& token : tokens) ids.emplace(token, ids.size());
  for (const Json& pieces : all) {
    for (const std::string piece : pieces) {
      const std::string token = Visible(piece);
      if (ids.emplace(token, ids.size()).second) tokens.push_back(token);
    }
  }
  Gguf g;
  g.metadata["tokenizer.ggml.model"] = std::string("gpt2");
  g.metadata["tokenizer.ggml.pre"] = pre;
  g.metadata["tokenizer.ggml.tokens"] = tokens;
  g.metadata["tokenizer.ggml.merges"] = std::vector<std::string>();
  const auto text = GgufTokenizerJson(g, "f");
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  Json made = Json::parse(*text);
  made["model"]["ignore_merges"] = true;
  const auto tokenizer = Tokenizer::FromJson(made.dump());
  ASSERT_TRUE(tokenizer.ok()) << ToString(tokenizer.status());
  const Json& texts = Recorded().at("texts");
  ASSERT_EQ(texts.size(), all.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<TokenId> want;
    for (const std::string piece : all[i]) want.push_back(ids.at(Visible(piece)));
    const auto got = (*tokenizer)->Encode(texts[i].get<std::string>(), false);
    ASSERT_TRUE(got.ok()) << ToString(got.status());
    std::string shown;
    for (TokenId id : *got) shown += "[" + (*tokenizer)->TokenText(id) + "]";
    EXPECT_EQ(*got, want) << texts[i] << "\n  got " << shown << "\n  want " << all[i];
  }
}

std::vector<std::string> RecordedNames() {
  std::vector<std::string> names;
  for (const auto& [name, pieces] : Recorded().at("pieces").items()) names.push_back(name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, PreTokenizer, ::testing::ValuesIn(RecordedNames()), [](const auto& param_info) {
  std::string name = param_info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(PreTokenizers, EveryWayOfCuttingIsRecorded) {
  EXPECT_EQ(RecordedNames().size(), 14u);
  for (const std::string& name : RecordedNames()) EXPECT_NE(FindGgufPreTokenizer(name), nullptr) << name;
  // Names of one row are one way; a name from each row is recorded.
  std::set<const GgufPreTokenizer*> rows;
  for (const std::string& name : RecordedNames()) rows.insert(FindGgufPreTokenizer(name));
  std::stringstream all(GgufPreTokenizerNames());
  for (std::string name; all >> name;) EXPECT_TRUE(rows.contains(FindGgufPreTokenizer(name))) << name;
  EXPECT_EQ(FindGgufPreTokenizer("qwen"), nullptr);
  EXPECT_EQ(FindGgufPreTokenizer(""), nullptr);
}

TEST(PreTokenizers, LlamaThreeAndTekkenBeginWithBosUnlessTheFileSaysNo) {
  Gguf g;
  g.metadata["tokenizer.ggml.model"] = std::string("gpt2");
  g.metadata["tokenizer.ggml.tokens"] = std::vector<std::string>{"<s>", "a", "b"};
  g.metadata["tokenizer.ggml.token_type"] = std::vector<int64_t>{3, 1, 1};
  g.metadata["tokenizer.ggml.merges"] = std::vector<std::string>();
  g.metadata["tokenizer.ggml.bos_token_id"] = int64_t{0};
  const auto ids = [&] {
    const auto text = GgufTokenizerJson(g, "f");
    EXPECT_TRUE(text.ok()) << ToString(text.status());
    return *(*Tokenizer::FromJson(*text))->Encode("ab", true);
  };
  for (const char* pre : {"llama-bpe", "tekken"}) {
    g.metadata["tokenizer.ggml.pre"] = std::string(pre);
    EXPECT_THAT(ids(), ElementsAre(0, 1, 2)) << pre;
  }
  g.metadata["tokenizer.ggml.add_bos_token"] = false;
  EXPECT_THAT(ids(), ElementsAre(1, 2));
  g.metadata.erase("tokenizer.ggml.add_bos_token");
  g.metadata["tokenizer.ggml.pre"] = std::string("gpt-2");
  EXPECT_THAT(ids(), ElementsAre(1, 2));
}

// As sentencepiece itself does: a leading blank, the best score first, bytes of what is no piece.
TEST(SentencePieceOfGguf, FallsBackToBytesAndBack) {
  Gguf g;
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int64_t> types = {2, 3, 3};
  std::vector<double> scores = {0, 0, 0};
  for (int b = 0; b < 256; ++b) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", b);
    tokens.push_back(text);
    types.push_back(6);
    scores.push_back(0);
  }
  for (const char* piece : {"▁", "a", "b", "ab", "▁a", "▁ab", "é"}) {
    tokens.push_back(piece);
    types.push_back(1);
    scores.push_back(-static_cast<double>(tokens.size()));
  }
  g.metadata["tokenizer.ggml.model"] = std::string("llama");
  g.metadata["tokenizer.ggml.tokens"] = tokens;
  g.metadata["tokenizer.ggml.token_type"] = types;
  g.metadata["tokenizer.ggml.scores"] = scores;
  g.metadata["tokenizer.ggml.bos_token_id"] = int64_t{1};
  const auto text = GgufTokenizerJson(g, "f");
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const auto tokenizer = Tokenizer::FromJson(*text);
  ASSERT_TRUE(tokenizer.ok()) << ToString(tokenizer.status());
  constexpr TokenId kByte = 3, kBlank = 259, kA = 260, kB = 261, kAb = 262, kBlankAb = 264, kE = 265;
  const auto encode = [&](const char* s) { return *(*tokenizer)->Encode(s, true); };
  EXPECT_THAT(encode("ab"), ElementsAre(1, kBlankAb));
  EXPECT_THAT(encode("b ab"), ElementsAre(1, kBlank, kB, kBlankAb));
  EXPECT_THAT(encode("aé"), ElementsAre(1, 263, kE));
  EXPECT_THAT(encode("\n"), ElementsAre(1, kBlank, kByte + 10));
  EXPECT_THAT(encode("bß"), ElementsAre(1, kBlank, kB, kByte + 0xC3, kByte + 0x9F));
  EXPECT_THAT(encode("😀ab"),
              ElementsAre(1, kBlank, kByte + 0xF0, kByte + 0x9F, kByte + 0x98, kByte + 0x80, kAb));
  EXPECT_EQ((*tokenizer)->TokenBytes(kByte + 0xC3), "\xC3");
  EXPECT_EQ((*tokenizer)->TokenBytes(kBlankAb), " ab");
  EXPECT_EQ(*(*tokenizer)->Decode(encode("b ß\n😀 a"), true), "b ß\n😀 a");
  EXPECT_EQ((*tokenizer)->TokenBytes(kA), "a");
}

TEST(PreTokenizers, UnknownOnesAreNamed) {
  Gguf g;
  g.metadata["tokenizer.ggml.model"] = std::string("gpt2");
  g.metadata["tokenizer.ggml.tokens"] = std::vector<std::string>{"a"};
  g.metadata["tokenizer.ggml.pre"] = std::string("superbpe");
  const std::string error = ToString(GgufTokenizerJson(g, "m.gguf").status());
  EXPECT_THAT(error, HasSubstr("m.gguf: tokenizer.ggml.pre: \"superbpe\" is not known (known: gpt-2"));
  EXPECT_THAT(error, HasSubstr("kimi-k2); put a tokenizer.json beside the file"));
}

}  // namespace
}  // namespace consilium
