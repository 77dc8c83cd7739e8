// What is wrong in a model must be found where it is wrong: each test changes some weights of a copy and
// expects the first place that a second look (two decoders side by side) gives.
#include "services/cli/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/safetensors.h"
#include "common/testing/tiny_checkpoint.h"
#include "services/cli/local_decoder.h"

namespace consilium {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Kind = GoldenCheck::Kind;

const std::string kGolden = std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/";

// A copy of a golden folder with bf16 weights.
class VerifyTest : public ::testing::Test {
 protected:
  void Copy(const std::string& folder) {
    dir_ = folder_.path() + "/" + folder;
    original_ = kGolden + folder;
    std::filesystem::copy(original_, dir_, std::filesystem::copy_options::recursive);
  }
  // element = element * factor + add, for elements [first, first + count).
  void Change(const std::string& tensor, size_t first, size_t count, float factor, float add) {
    const std::string path = dir_ + "/model.safetensors";
    const auto tensors = ReadSafetensors(path, 0);
    ASSERT_TRUE(tensors.ok()) << ToString(tensors.status());
    const auto t = std::find_if(tensors->begin(), tensors->end(),
                                [&](const TensorInfo& info) { return info.name == tensor; });
    ASSERT_TRUE(t != tensors->end() && t->dtype == DType::kBf16) << tensor;
    ASSERT_LE(first + count, t->elements());
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    for (size_t i = first; i < first + count; ++i) {
      const auto at = static_cast<std::streamoff>(t->range.offset + 2 * i);
      uint16_t half = 0;
      file.seekg(at);
      file.read(reinterpret_cast<char*>(&half), 2);
      const uint32_t bits = uint32_t{half} << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      value = value * factor + add;
      uint32_t changed;
      std::memcpy(&changed, &value, 4);
      half = static_cast<uint16_t>(changed >> 16);
      file.seekp(at);
      file.write(reinterpret_cast<const char*>(&half), 2);
    }
    ASSERT_TRUE(file.good());
  }
  VerifyOptions OptionsFor(const std::string& model) {
    VerifyOptions options;
    options.model = model;
    options.threads = 1;
    options.progress = false;
    return options;
  }
  GoldenCheck FirstMiss() {
    const auto verdict = Verify(OptionsFor(dir_));
    EXPECT_TRUE(verdict.ok()) << ToString(verdict.status());
    if (!verdict.ok() || verdict->first_miss() == nullptr) {
      ADD_FAILURE() << "everything holds";
      return {};
    }
    return *verdict->first_miss();
  }
  // Experts that the router of each layer chooses, by row, over prompt `p` of the golden file.
  static std::map<uint32_t, std::vector<uint16_t>> Routes(const std::string& dir, size_t p) {
    std::map<uint32_t, std::vector<uint16_t>> routes;
    LocalDecoderOptions options;
    options.observer = [&](const LayerObservation& o) {
      if (o.kind == LayerObservation::Kind::kRouterWeights)
        routes[o.layer].assign(o.experts.begin(), o.experts.end());
    };
    const auto decoder = LocalDecoder::Open(dir, options).value();
    const auto golden = ReadGolden(dir + "/golden.safetensors", decoder->spec()).value();
    EXPECT_TRUE(decoder->Step({Feed{decoder->AddSequence(), golden.prompts[p].ids}}).ok());
    return routes;
  }
  // Exit code and stdout of the command.
  static std::pair<int, std::string> Run(const VerifyOptions& options) {
    ::testing::internal::CaptureStdout();
    const int code = RunVerify(options);
    return {code, ::testing::internal::GetCapturedStdout()};
  }

  TemporaryFolder folder_;
  std::string dir_, original_;
};

TEST_F(VerifyTest, AnExpertIsFoundInTheHiddenStateOfItsFirstToken) {
  Copy("mixtral");
  // The expert of layer 1 whose first use in prompt 1 comes last: places before it must hold.
  std::map<uint16_t, size_t> first_use;
  const std::vector<uint16_t> routes = Routes(dir_, 1).at(1);
  for (size_t i = 0; i < routes.size(); ++i) first_use.emplace(routes[i], i / 2);
  const auto last = std::max_element(first_use.begin(), first_use.end(),
                                     [](auto& a, auto& b) { return a.second < b.second; });
  ASSERT_GT(last->second, 0u);
  Change("model.layers.1.block_sparse_moe.experts." + std::to_string(last->first) + ".w2.weight", 0, 64 * 40,
         1.5f, 0);
  const GoldenCheck miss = FirstMiss();
  EXPECT_EQ(miss.kind, Kind::kHidden);
  EXPECT_EQ(miss.layer, 2u);  // it leaves layer 1
  EXPECT_EQ(miss.prompt, "prompt.1");
  EXPECT_EQ(miss.miss->position, last->second);
  EXPECT_THAT(MissText(miss), HasSubstr("layer 1, prompt.1, position " + std::to_string(last->second) +
                                        ": hidden state leaving the layer: expected "));
}

TEST_F(VerifyTest, AnEmbeddingRowIsFoundAtItsFirstToken) {
  Copy("mixtral");
  const auto spec = ReadModelSpec(dir_).value();
  const auto ids = ReadGolden(dir_ + "/golden.safetensors", spec).value().prompts[1].ids;
  const auto at = static_cast<size_t>(std::find(ids.begin(), ids.end(), ids.back()) - ids.begin());
  Change("model.embed_tokens.weight", ids.back() * 64 + 5, 1, 1, 0.25f);
  const GoldenCheck miss = FirstMiss();
  EXPECT_EQ(miss.kind, Kind::kHidden);
  EXPECT_EQ(miss.layer, 0u);
  EXPECT_EQ(miss.miss->position, at);
  EXPECT_THAT(miss.miss->expected, HasSubstr("in element 5"));
  EXPECT_THAT(MissText(miss), HasSubstr("hidden state entering layer 0"));
}

TEST_F(VerifyTest, ARouterRowIsFoundWhereItFirstChoosesOtherwise) {
  Copy("mixtral");
  Change("model.layers.2.block_sparse_moe.gate.weight", 3 * 64, 64, -1, 0);  // the row of expert 3
  const auto before = Routes(original_, 2).at(2), after = Routes(dir_, 2).at(2);
  const size_t row =
      static_cast<size_t>(std::mismatch(before.begin(), before.end(), after.begin()).first - before.begin()) /
      2;
  const GoldenCheck miss = FirstMiss();
  EXPECT_EQ(miss.kind, Kind::kRouterIds);
  EXPECT_EQ(miss.layer, 2u);
  EXPECT_EQ(miss.prompt, "prompt.2");
  EXPECT_EQ(miss.miss->position, row);
  const auto pair = [&](const std::vector<uint16_t>& all) {
    return "[" + std::to_string(all[2 * row]) + ", " + std::to_string(all[2 * row + 1]) + "]";
  };
  EXPECT_EQ(miss.miss->expected, pair(before));
  EXPECT_EQ(miss.miss->got, pair(after));
}

// The first that sees a layer's attention is its router, where there is one.
TEST_F(VerifyTest, OutputProjectionsAreFoundInTheirLayer) {
  Copy("deepseek_v3");
  Change("model.layers.0.self_attn.o_proj.weight", 0, 64 * 64, 1.5f, 0);  // a dense layer
  GoldenCheck miss = FirstMiss();
  EXPECT_EQ(miss.kind, Kind::kHidden);
  EXPECT_EQ(miss.layer, 1u);
  EXPECT_EQ(miss.miss->position, 0u);

  Copy("mixtral");
  Change("model.layers.1.self_attn.o_proj.weight", 0, 64 * 64, 1.5f, 0);
  miss = FirstMiss();
  EXPECT_EQ(miss.layer, 1u);
  const auto before = Routes(original_, 2).at(1), after = Routes(dir_, 2).at(1);
  const auto differ = std::mismatch(before.begin(), before.end(), after.begin()).first;
  ASSERT_NE(differ, before.end());
  EXPECT_EQ(miss.kind, Kind::kRouterIds);
  EXPECT_EQ(miss.miss->position, static_cast<size_t>(differ - before.begin()) / 2);
}

TEST_F(VerifyTest, TheHeadIsFoundInTheLogitsAndNoNumberNeverHolds) {
  Copy("mixtral");
  Change("lm_head.weight", 7 * 64, 1, std::nanf(""), 0);
  const GoldenCheck miss = FirstMiss();
  EXPECT_EQ(miss.kind, Kind::kLogits);
  EXPECT_EQ(miss.prompt, "prompt.0");
  EXPECT_EQ(miss.miss->position, 0u);
  EXPECT_THAT(miss.miss->expected, HasSubstr("in element 7"));
  EXPECT_THAT(miss.miss->got, HasSubstr("nan"));
}

TEST_F(VerifyTest, TheCommandSaysTheFirstPlaceAndEndsWithOne) {
  Copy("mixtral");
  EXPECT_EQ(Run(OptionsFor(original_)).first, 0);
  Change("model.layers.0.block_sparse_moe.gate.weight", 0, 8 * 64, 2, 0);
  const auto [code, text] = Run(OptionsFor(dir_));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(text, HasSubstr("First place out of tolerance: layer 0, prompt.2, position "));
  VerifyOptions options = OptionsFor(dir_);
  options.json = true;
  const auto json = nlohmann::json::parse(Run(options).second);
  EXPECT_EQ(json["holds"], false);
  EXPECT_EQ(json["first"]["layer"], 0);
  EXPECT_EQ(json["first"]["check"], "router_weights");  // twice all logits: the same order
  EXPECT_EQ(json["checks"].size(), 22u);
}

TEST_F(VerifyTest, FlagsSetTolerances) {
  VerifyOptions options = OptionsFor(kGolden + "mixtral");
  options.tolerance.hidden = 1e-12;
  const auto strict = Verify(options);
  ASSERT_TRUE(strict.ok());
  ASSERT_NE(strict->first_miss(), nullptr);
  EXPECT_EQ(strict->first_miss()->kind, Kind::kHidden);
  Copy("mixtral");
  Change("lm_head.weight", 0, 1, 1, 0.01f);
  options = OptionsFor(dir_);
  EXPECT_NE(Verify(options)->first_miss(), nullptr);
  options.tolerance = {1, 1, 1, 1};
  EXPECT_EQ(Verify(options)->first_miss(), nullptr);
}

TEST_F(VerifyTest, WhatDoesNotFitTheModelIsNamed) {
  VerifyOptions options = OptionsFor(kGolden + "mixtral");
  options.golden = "/nonexistent.safetensors";
  EXPECT_EQ(Message(Verify(options).status()), "no golden file /nonexistent.safetensors");
  EXPECT_EQ(RunVerify(options), 2);
  options.golden = kGolden + "deepseek_v3/golden.safetensors";
  EXPECT_THAT(Message(Verify(options).status()),
              AllOf(HasSubstr("tensor \"prompt.2.router.1.ids\" does not fit the model"),
                    HasSubstr("expected I32 [45, 2], got I32 [45, 4]")));
  options.golden = kGolden + "mixtral/model.safetensors";
  EXPECT_THAT(Message(Verify(options).status()), HasSubstr("no tensor \"prompt.0.ids\""));
  options.model = "/nonexistent";
  EXPECT_EQ(RunVerify(options), 2);
  EXPECT_EQ(RunVerify(OptionsFor(std::string(CONSILIUM_SOURCE_DIR) + "/docs")), 2);
}

TEST_F(VerifyTest, BadTolerancesAndTokensOfAGoldenFileAreNamed) {
  Copy("mixtral");
  const auto write = [&](const char* text) { std::ofstream(dir_ + "/golden.json") << text; };
  write(R"({"tolerance": {"hidden": "small"}})");
  EXPECT_THAT(Message(Verify(OptionsFor(dir_)).status()),
              HasSubstr("golden.json: \"tolerance.hidden\": expected a number from 0, got \"small\""));
  write("[]");
  EXPECT_THAT(Message(Verify(OptionsFor(dir_)).status()), HasSubstr("golden.json: expected a JSON object"));
  write(R"({"greedy": [{"ids": [1], "continuation_ids": [512]}]})");
  EXPECT_THAT(Message(Verify(OptionsFor(dir_)).status()),
              HasSubstr("greedy.0.continuation_ids: expected a list of token ids in 0..511"));
  std::filesystem::remove(dir_ + "/golden.json");
  const auto verdict = Verify(OptionsFor(dir_));
  ASSERT_TRUE(verdict.ok());
  EXPECT_FALSE(verdict->tolerance_stated);
  EXPECT_EQ(verdict->tolerance.hidden, 1e-4);
}

}  // namespace
}  // namespace consilium
