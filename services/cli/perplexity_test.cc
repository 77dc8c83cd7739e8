#include "services/cli/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/testing/tiny_checkpoint.h"
#include "common/text/text.h"
#include "services/cli/local_decoder.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;

const std::string kRoot = CONSILIUM_SOURCE_DIR;
const std::string kDemo = kRoot + "/models/demo";

TEST(PlanWindowsTest, EveryTokenIsScoredOnceWithinTheContext) {
  for (size_t tokens : {2, 3, 7, 8, 9, 16, 17, 40}) {
    for (size_t before : {0, 1, 2}) {
      for (size_t context : {3, 4, 8}) {
        for (size_t stride = 1; stride <= context - before; ++stride) {
          size_t next = before == 0 ? 1 : 0;
          for (const TextWindow& w : PlanWindows(tokens, before, context, stride)) {
            EXPECT_EQ(w.first, next);
            EXPECT_LT(w.first, w.last_after);
            EXPECT_LE(w.end - w.begin + before, context);
            // The token before each scored one is in the window, or the window's own first ones are.
            EXPECT_GE(w.first, w.begin + (before == 0 ? 1 : 0));
            EXPECT_LE(w.last_after, w.end + 1);
            next = w.last_after;
          }
          EXPECT_EQ(next, tokens) << before << " " << context << " " << stride;
        }
      }
    }
  }
}

TEST(PlanWindowsTest, WithoutOverlapWindowsLieEndToEnd) {
  const auto w = PlanWindows(10, 0, 4, 4);
  ASSERT_EQ(w.size(), 3u);
  EXPECT_EQ(w[1].begin, 4u);
  EXPECT_EQ(w[1].first, 5u);  // token 4 was predicted by the first window
  EXPECT_EQ(w[2].end, 10u);
}

class PerplexityTest : public ::testing::Test {
 protected:
  PerplexityOptions Demo(uint32_t tokens) {
    PerplexityOptions options;
    options.model = kDemo;
    options.text = kDemo + "/heldout.txt";
    options.tokens_max = tokens;
    options.threads = 1;
    options.progress = false;
    return options;
  }
  std::string Write(const std::string& text) {
    const std::string path = folder_.path() + "/text";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  TemporaryFolder folder_;
};

TEST_F(PerplexityTest, TheLossIsTheMeanOverTheSoftmaxOfLogits) {
  PerplexityOptions options = Demo(200);
  options.context = 64;
  const auto result = MeasurePerplexity(options);
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_EQ(result->tokens, 199u);
  EXPECT_EQ(result->windows, 4u);
  EXPECT_EQ(result->score.class_name, "f32");
  const auto tokenizer =
      Tokenizer::FromJson(ReadTextFile(kDemo + "/tokenizer.json", 1 << 20).value()).value();
  auto ids = tokenizer->Encode(ReadTextFile(options.text, 1 << 20).value(), false).value();
  ids.resize(200);
  const auto decoder = LocalDecoder::Open(kDemo).value();
  double sum = 0;
  size_t bytes = 0;
  for (size_t begin = 0; begin < 199; begin += 64) {
    const size_t count = std::min<size_t>(64, 199 - begin), vocab = decoder->spec().vocab;
    const auto logits =
        decoder->Prefill(decoder->AddSequence(), std::span(ids).subspan(begin, count), count).value();
    for (size_t i = 0; i < count; ++i) {
      double total = 0;
      for (size_t v = 0; v < vocab; ++v) total += std::exp(double{logits[i * vocab + v]});
      sum += std::log(total) - logits[i * vocab + ids[begin + i + 1]];
      if (!tokenizer->IsSpecial(ids[begin + i + 1]))
        bytes += tokenizer->TokenBytes(ids[begin + i + 1]).size();
    }
  }
  EXPECT_NEAR(result->score.loss, sum / 199, 1e-6);
  EXPECT_NEAR(result->score.perplexity, std::exp(sum / 199), 1e-4);
  EXPECT_EQ(result->bytes, bytes);
  EXPECT_NEAR(result->score.bits_per_byte, sum / std::log(2.0) / static_cast<double>(bytes), 1e-6);
}

// The issue's demand for 8 bits; 4 bits lose more.
TEST_F(PerplexityTest, EightBitsLoseAtMostOnePercent) {
  PerplexityOptions options = Demo(4000);
  options.against_f32 = true;
  options.numerics = {"i8g32", "int8"};
  const auto eight = MeasurePerplexity(options);
  ASSERT_TRUE(eight.ok()) << ToString(eight.status());
  std::printf("f32 %.4f, int8 %.4f: loss %.3f %%\n", eight->f32->perplexity, eight->score.perplexity,
              eight->quality_loss_percent);
  EXPECT_LE(eight->quality_loss_percent, 1.0);
  EXPECT_GE(eight->quality_loss_percent, -1.0);
  EXPECT_GT(eight->mean_difference, 0);  // it did compute in another class
  EXPECT_GT(eight->score.quant_error.relative(), 0);
  EXPECT_LT(eight->score.quant_error.relative(), 0.01);
  EXPECT_LT(eight->score.expert_bytes, eight->f32->expert_bytes * 6 / 10);
  EXPECT_EQ(eight->f32->class_name, "f32");
  EXPECT_LT(eight->f32->perplexity, 60);  // the demo's card: 24.6 to 66 on these texts
}

TEST_F(PerplexityTest, OverlapGivesMoreContextAndABetterLoss) {
  PerplexityOptions options = Demo(600);
  options.context = 64;
  const auto apart = MeasurePerplexity(options);
  options.stride = 16;
  const auto overlapping = MeasurePerplexity(options);
  ASSERT_TRUE(apart.ok() && overlapping.ok());
  EXPECT_EQ(overlapping->tokens, apart->tokens);
  EXPECT_LT(overlapping->score.loss, apart->score.loss);
}

TEST_F(PerplexityTest, ABosOfTheTokenizerBeginsEveryWindow) {
  const std::string dir = folder_.path() + "/model";
  std::filesystem::copy(kRoot + "/tests/golden/mixtral", dir);
  PerplexityOptions options;
  options.model = dir;
  options.text = Write("A text of some words, and a few more of them.");
  options.threads = 1;
  options.progress = false;
  options.context = 8;
  const auto without = MeasurePerplexity(options);
  ASSERT_TRUE(without.ok()) << ToString(without.status());
  auto json = nlohmann::json::parse(ReadTextFile(dir + "/tokenizer.json", 1 << 20).value());
  json["post_processor"] = nlohmann::json::parse(
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
          "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
          "special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}})");
  std::ofstream(dir + "/tokenizer.json") << json;
  const auto with = MeasurePerplexity(options);
  ASSERT_TRUE(with.ok()) << ToString(with.status());
  EXPECT_EQ(with->tokens, without->tokens + 1);  // the first token is scored behind the BOS
  EXPECT_EQ(with->stride, 7u);
  EXPECT_NE(with->score.loss, without->score.loss);
}

TEST_F(PerplexityTest, WhatCannotBeScoredIsNamed) {
  PerplexityOptions options = Demo(100);
  options.context = 769;
  EXPECT_EQ(Message(MeasurePerplexity(options).status()),
            "--context: expected 1..768 tokens for this model, got 769");
  options.context = 64;
  options.stride = 65;
  EXPECT_THAT(Message(MeasurePerplexity(options).status()), HasSubstr("at most the 64 tokens"));
  options = Demo(100);
  options.text = Write("");
  EXPECT_THAT(Message(MeasurePerplexity(options).status()), HasSubstr("expected at least 2 tokens, got 0"));
  options.text = Write("\xff\xfe");
  EXPECT_THAT(Message(MeasurePerplexity(options).status()), HasSubstr("expected UTF-8"));
  options.text = "/nonexistent";
  EXPECT_THAT(Message(MeasurePerplexity(options).status()), HasSubstr("/nonexistent"));
  EXPECT_EQ(RunPerplexity(options), 1);
}

TEST_F(PerplexityTest, TheCommandPrintsJson) {
  PerplexityOptions options = Demo(300);
  options.json = true;
  options.against_f32 = true;
  options.numerics = {"auto", "int4"};
  ::testing::internal::CaptureStdout();
  ASSERT_EQ(RunPerplexity(options), 0);
  const auto json = nlohmann::json::parse(::testing::internal::GetCapturedStdout());
  EXPECT_EQ(json["tokens"], 299);
  EXPECT_EQ(json["context"], 768);
  EXPECT_EQ(json["score"]["class"], "i8g32+int4");
  EXPECT_EQ(json["f32"]["class"], "f32");
  EXPECT_NEAR(json["quality_loss_percent"].get<double>(),
              100 * (json["score"]["perplexity"].get<double>() / json["f32"]["perplexity"].get<double>() - 1),
              1e-9);
}

}  // namespace
}  // namespace consilium
