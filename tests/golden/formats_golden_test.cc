// Every storage format against its golden file (tests/golden/README.md), in class f32: logits, hidden states,
// router choices, greedy continuations. GGUF folders hold nothing but the file: configuration comes from its
// metadata.
#include <span>

#include "common/model/model_spec.h"
#include "tests/golden/golden_pairs.h"
#include "tests/golden/verdicts.h"

namespace consilium {
namespace {

using Kind = GoldenCheck::Kind;

// A folder, and the one whose golden file holds for it where it has none of its own.
struct Case {
  const char* folder;
  const char* golden = nullptr;
};

class Format : public ::testing::TestWithParam<Case> {
 protected:
  void Expect(Kind kind, size_t count) { ExpectHolds(folder_, kind, count, golden_); }
  static std::string Folder(const char* name) {
    return name == nullptr ? "" : std::string("tests/golden/") + name;
  }
  const std::string folder_ = Folder(GetParam().folder), golden_ = Folder(GetParam().golden);
};

TEST_P(Format, EveryLogitIsWithinTolerance) { Expect(Kind::kLogits, 3); }

TEST_P(Format, RouterChoosesTheSameExpertsInTheSameOrder) {
  const auto spec = ReadModelSpec(std::string(CONSILIUM_SOURCE_DIR) + "/" + folder_);
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  Expect(Kind::kRouterIds, spec->moe_layers());
  Expect(Kind::kRouterWeights, spec->moe_layers());
}

TEST_P(Format, HiddenStatesOfEveryLayerAreWithinTolerance) {
  const auto spec = ReadModelSpec(std::string(CONSILIUM_SOURCE_DIR) + "/" + folder_);
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  Expect(Kind::kHidden, spec->layers.size() + 1);
}

TEST_P(Format, GreedyContinuationsAreTokenEqual) {
  Expect(Kind::kGreedyIds, 3);
  Expect(Kind::kLogprobs, 3);
}

constexpr Case kStorage[] = {{"deepseek_v3_fp8"},
                             {"kimi_k2_int4"},
                             {"gpt_oss_mxfp4"},
                             {"qwen3_moe_fused"},
                             {"gguf_deepseek2_bf16"},
                             {"gguf_gpt_oss_mxfp4"},
                             {"gguf_mixtral_q8_0"},
                             {"gguf_mixtral_q4_1"},
                             {"gguf_mixtral_q5_0"},
                             {"gguf_mixtral_q5_1"},
                             {"gguf_qwen3moe_q5_k"},
                             {"gguf_olmoe_q4_0"},
                             {"gguf_qwen3moe_q4_k_q6_k"},
                             {"gguf_qwen3moe_q2_k_iq4"},
                             {"qwen3_moe_gptq"},
                             {"mixtral_gptq"},
                             {"mixtral_w8a8"},
                             {"qwen3_moe_fp8_dynamic"},
                             {"mixtral_fp8"},
                             {"mixtral_mxfp4"},
                             {"mixtral_mixed"}};
std::vector<Case> CasesOf(std::span<const GoldenPair> pairs) {
  std::vector<Case> cases;
  for (const GoldenPair& pair : pairs) cases.push_back({pair.folder, pair.golden});
  return cases;
}
std::string NameOf(const ::testing::TestParamInfo<Case>& info) { return info.param.folder; }
INSTANTIATE_TEST_SUITE_P(Storage, Format, ::testing::ValuesIn(kStorage), NameOf);
INSTANTIATE_TEST_SUITE_P(SameIntegers, Format, ::testing::ValuesIn(CasesOf(kQuantPairs)), NameOf);
INSTANTIATE_TEST_SUITE_P(GgufArchitectures, Format, ::testing::ValuesIn(CasesOf(kGgufPairs)), NameOf);

// Llama-4's chunks and temperature steps are constants of llama.cpp in GGUF, other ones than in the bf16
// folder: so llama.cpp's own logits are the truth (gguf_llamacpp.py), of outputs only.
TEST(GgufArchitectures, Llama4ComputesWhatLlamaCppDoes) {
  const std::string folder = "tests/golden/gguf_llama4";
  ExpectHolds(folder, Kind::kLogits, 3);
  ExpectHolds(folder, Kind::kGreedyIds, 3);
  ExpectHolds(folder, Kind::kLogprobs, 3);
}

}  // namespace
}  // namespace consilium
