#include "common/text/text.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace consilium {
namespace {

using json = nlohmann::ordered_json;  // tools go to the template in the caller's order

std::string ReadFile(const std::string& path) {
  std::ifstream in(std::string(CONSILIUM_SOURCE_DIR "/") + path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

std::shared_ptr<const Tokenizer> Load(const std::string& path) {
  auto tokenizer = Tokenizer::FromJson(ReadFile(path));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *tokenizer;
}

std::shared_ptr<const Tokenizer> Demo() {
  static const auto demo = Load("models/demo/tokenizer.json");
  return demo;
}

std::string Streamed(const std::vector<TokenId>& ids, bool skip_special) {
  TextStream stream(Demo(), skip_special);
  std::string out;
  for (TokenId id : ids) {
    const std::string step = stream.Step(id);
    EXPECT_TRUE(IsUtf8(step));
    out += step;
  }
  return out + stream.Flush();
}

TEST(Template, RendersAndTokenizesEveryGoldenPromptAsTransformersDoes) {
  auto chat = ChatTemplate::FromSource(ReadFile("models/demo/chat_template.jinja"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  const json golden = json::parse(ReadFile("models/demo/golden.json"));
  int prompts = 0;
  for (const char* part : {"logits", "greedy"}) {
    for (const json& g : golden[part]) {
      if (!g.contains("messages")) continue;
      ++prompts;
      const json context = {
          {"messages", g["messages"]}, {"tools", g.value("tools", json())}, {"add_generation_prompt", true}};
      const auto text = (*chat)->Render(context.dump());
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, g["text"].get<std::string>());
      EXPECT_EQ(*Demo()->Encode(*text, false), g["ids"].get<std::vector<TokenId>>());
    }
  }
  EXPECT_GE(prompts, 10);
}

TEST(Template, ReportsItsErrors) {
  EXPECT_FALSE(ChatTemplate::FromSource("{% if %}").ok());
  const auto raises = ChatTemplate::FromSource("{{ raise_exception('no system role') }}");
  const auto text = (*raises)->Render("{}");
  ASSERT_FALSE(text.ok());
  EXPECT_NE(std::string(text.status().message()).find("no system role"), std::string::npos);
  EXPECT_FALSE((*raises)->Render("[1").ok());
  EXPECT_FALSE((*raises)->Render(std::string(100000, '[')).ok());
}

TEST(Template, PrintsJsonAsPythonDoes) {
  const auto chat = ChatTemplate::FromSource("{{ x | tojson }}");
  EXPECT_EQ(*(*chat)->Render(R"({"x":{"b":1e16,"a":[1.0,0.00001,"é<\""],"n":null}})"),
            R"({"b": 1e+16, "a": [1.0, 1e-05, "é<\""], "n": null})");
}

TEST(Tokenizer, DecodesWhatItEncodes) {
  for (const std::string text :
       {"", "Hello, wörld! 你好 👩‍🚀 x=1", " two  spaces\n\n", "<tool_call>\n{}</tool_call>"}) {
    const auto ids = *Demo()->Encode(text, true);
    EXPECT_EQ(*Demo()->Decode(ids, false), text);
    EXPECT_EQ(Streamed(ids, false), text);
    std::string bytes;
    for (TokenId id : ids) bytes += Demo()->TokenBytes(id);
    EXPECT_EQ(bytes, text);
  }
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8AndFilesThatAreNotTokenizers) {
  EXPECT_EQ(Demo()->Encode("\xff\xfe", false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokenizer::FromJson("{}").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokenizer::FromJson("").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, KnowsSpecialTokensAndUnknownIds) {
  EXPECT_EQ(Demo()->vocab_size(), 2048u);
  EXPECT_TRUE(Demo()->IsSpecial(2));
  EXPECT_FALSE(Demo()->IsSpecial(2046));  // <tool_call>: added, but part of the text
  EXPECT_EQ(Demo()->TokenText(2), "<|im_end|>");
  EXPECT_EQ(Demo()->TokenText(2046), "<tool_call>");
  EXPECT_EQ(Demo()->TokenBytes(999999), "");
  EXPECT_EQ(Streamed({1, 2046, 2}, true), "<tool_call>");
}

TEST(Tokenizer, WritesTheTextOfAPartialCharacterAsBytes) {
  const auto ids = *Demo()->Encode("👩", false);
  ASSERT_GT(ids.size(), 1u);  // the demo's vocabulary has no such character
  std::string bytes;
  for (TokenId id : ids) {
    bytes += Demo()->TokenBytes(id);
    EXPECT_TRUE(Demo()->TokenText(id).starts_with("bytes:\\x")) << Demo()->TokenText(id);
  }
  EXPECT_EQ(bytes, "👩");
}

TEST(Stream, HoldsACharacterBackUntilItIsWhole) {
  const auto ids = *Demo()->Encode("👩", false);
  TextStream stream(Demo(), false);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(stream.Step(ids[i]), "");
  EXPECT_EQ(stream.Step(ids.back()), "👩");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(Stream, EndsAnIncompleteCharacterWithOneReplacement) {
  const auto ids = *Demo()->Encode("👩", false);
  EXPECT_EQ(Streamed({ids[0]}, false), "\xEF\xBF\xBD");
}

TEST(Stream, EqualsTheWholeDecodeForRandomTokens) {
  uint64_t state = 7;
  for (int round = 0; round < 200; ++round) {
    std::vector<TokenId> ids;
    for (int i = 0; i < 30; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      ids.push_back(
          static_cast<TokenId>((state >> 33) % (round % 2 ? 2048 : 260)));  // the low ids are single bytes
    }
    ASSERT_EQ(Streamed(ids, false), *Demo()->Decode(ids, false)) << "round " << round;
    ASSERT_EQ(Streamed(ids, true), *Demo()->Decode(ids, true)) << "round " << round;
  }
}

TEST(Utf8, TakesOneReplacementForEachMaximalSubpart) {
  const std::string r = "\xEF\xBF\xBD";
  const auto take = [](std::string s) { return TakeUtf8(&s, true); };
  EXPECT_EQ(take("a\xF0\x9F\x91z"), "a" + r + "z");
  EXPECT_EQ(take("\xC0\xAF"), r + r);
  EXPECT_EQ(take("\xED\xA0\x80"), r + r + r);  // a surrogate
  EXPECT_EQ(take("\xF4\x90\x80\x80"), r + r + r + r);
  std::string cut = "x\xE4\xBD";
  EXPECT_EQ(TakeUtf8(&cut, false), "x");
  EXPECT_EQ(cut, "\xE4\xBD");
}

// A tokenizer in SentencePiece's manner: "▁" for spaces, bytes as <0xNN>.
TEST(Tokenizer, ReadsSentencePieceTokens) {
  json vocab;
  int id = 0;
  for (const char* token : {"<unk>", "<0xE4>", "<0xBD>", "<0xA0>", "\xE2\x96\x81hi", "hi"})
    vocab[token] = id++;
  const json file = {{"version", "1.0"},
                     {"added_tokens", json::array()},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", nullptr},
                     {"post_processor", nullptr},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"decoder",
                      {{"type", "Sequence"},
                       {"decoders",
                        {{{"type", "Replace"}, {"pattern", {{"String", "\xE2\x96\x81"}}}, {"content", " "}},
                         {{"type", "ByteFallback"}},
                         {{"type", "Fuse"}}}}}},
                     {"model",
                      {{"type", "BPE"},
                       {"vocab", vocab},
                       {"merges", json::array()},
                       {"byte_fallback", true},
                       {"unk_token", "<unk>"}}}};
  auto tokenizer = Tokenizer::FromJson(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenBytes(4), " hi");
  TextStream stream(*tokenizer, true);
  std::string out;
  for (TokenId token : {5, 4, 1, 2, 3}) out += stream.Step(token);
  EXPECT_EQ(out, "hi hi你");
}

TEST(Tokenizer, RefusesDecodersItCannotMapToBytes) {
  json file = json::parse(ReadFile("models/demo/tokenizer.json"));
  file["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  const auto tokenizer = Tokenizer::FromJson(file.dump());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(std::string(tokenizer.status().message()).find("WordPiece"), std::string::npos);
}

TEST(Tokenizer, LoadsTheSmallMixtralReference) {
  const auto tokenizer = Load("tests/golden/mixtral/tokenizer.json");
  EXPECT_TRUE(tokenizer->IsSpecial(4));
  EXPECT_EQ(*tokenizer->Decode(*tokenizer->Encode("Hi there", false), false), "Hi there");
}

}  // namespace
}  // namespace consilium
