// Every storage format against its golden file (tests/golden/README.md), in class f32: logits, router
// choices, greedy continuations. GGUF folders hold nothing but the file: configuration comes from its
// metadata.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/golden/golden_file.h"
#include "tests/golden/local_decoder.h"

namespace consilium {
namespace {

using Json = nlohmann::json;

double Largest(std::span<const float> a, std::span<const float> b) {
  CHECK(a.size() == b.size());
  double max = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    max = std::isfinite(d) ? std::max(max, d) : INFINITY;
  }
  return max;
}

class Format : public ::testing::TestWithParam<const char*> {
 protected:
  const std::string dir_ = std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + GetParam();
  const GoldenFile golden_{dir_ + "/golden.safetensors"};
  const Json tolerance_ = Json::parse(std::ifstream(dir_ + "/golden.json"))["tolerance"];
  static std::string Key(int prompt, const std::string& what) {
    return "prompt." + std::to_string(prompt) + "." + what;
  }
};

TEST_P(Format, EveryLogitIsWithinTolerance) {
  const auto decoder = LocalDecoder::Open(dir_);
  for (int p = 0; p < 3; ++p) {
    const auto ids = golden_.Tokens(Key(p, "ids"));
    const double d =
        Largest(decoder->Prefill(decoder->AddSequence(), ids, ids.size()), golden_.Floats(Key(p, "logits")));
    std::printf("%s prompt %d: %zu tokens, largest logit difference %.3g, tolerance %.3g\n", GetParam(), p,
                ids.size(), d, tolerance_["logits"].get<double>());
    EXPECT_LE(d, tolerance_["logits"].get<double>());
  }
}

TEST_P(Format, RouterChoosesTheSameExpertsInTheSameOrder) {
  std::map<uint32_t, std::vector<int32_t>> chosen;
  LocalDecoderOptions options;
  options.observer = [&](const LayerObservation& o) {
    if (o.kind == LayerObservation::Kind::kRouterWeights)
      chosen[o.layer].assign(o.experts.begin(), o.experts.end());
  };
  const auto decoder = LocalDecoder::Open(dir_, options);
  decoder->Step({Feed{decoder->AddSequence(), golden_.Tokens(Key(2, "ids")), true}});
  ASSERT_EQ(chosen.size(), decoder->spec().moe_layers());
  for (const auto& [layer, ids] : chosen)
    EXPECT_EQ(ids, golden_.Ints(Key(2, "router." + std::to_string(layer) + ".ids"))) << "layer " << layer;
}

TEST_P(Format, GreedyContinuationsAreTokenEqual) {
  const auto decoder = LocalDecoder::Open(dir_);
  for (int p = 0; p < 3; ++p) {
    const auto golden = golden_.Tokens(Key(p, "greedy_ids"));
    EXPECT_EQ(decoder->Greedy(golden_.Tokens(Key(p, "ids")), golden.size()), golden) << "prompt " << p;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Format,
                         ::testing::Values("deepseek_v3_fp8", "kimi_k2_int4", "gpt_oss_mxfp4",
                                           "qwen3_moe_fused", "gguf_deepseek2_bf16", "gguf_gpt_oss_mxfp4",
                                           "gguf_mixtral_q8_0", "gguf_olmoe_q4_0", "gguf_qwen3moe_q4_k_q6_k"),
                         [](const auto& param_info) { return std::string(param_info.param); });

}  // namespace
}  // namespace consilium
