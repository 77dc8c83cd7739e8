// Every family's golden folder through config, tensor roles and `inspect`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "common/base/status.h"
#include "common/model/families/family.h"
#include "common/model/inspect.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_index.h"

namespace consilium {
namespace {

struct Folder {
  const char* name;
  const char* family;
  bool ignores = false;  // holds tensors without use
};

class FamilyFolders : public ::testing::TestWithParam<Folder> {
 protected:
  const std::string dir_ = std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + GetParam().name;
};

TEST_P(FamilyFolders, EveryTensorHasARoleAndTheSumsAreRight) {
  const auto spec = ReadModelSpec(dir_);
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  EXPECT_EQ(spec->family, GetParam().family);
  EXPECT_THAT(spec->eos_ids, ::testing::ElementsAre(2, 4));
  const auto manifest = OpenManifest(dir_, "");
  ASSERT_TRUE(manifest.ok()) << ToString(manifest.status());
  ASSERT_EQ(manifest->experts.size(), spec->experts_total());
  uint64_t in_files = 0, claimed = 0;
  for (size_t i = 0; i < manifest->files.size(); ++i) {
    const auto tensors = ReadSafetensors(manifest->files[i], static_cast<uint32_t>(i));
    ASSERT_TRUE(tensors.ok());
    for (const TensorInfo& t : *tensors) in_files += t.elements();
  }
  for (const TensorInfo& t : manifest->dense) claimed += t.elements();
  const uint64_t matrix = uint64_t{spec->expert_inter} * spec->hidden;
  std::set<Digest> digests;
  for (const ExpertEntry& e : manifest->experts) {
    for (const TensorInfo& t : e.parts) claimed += t.elements();
    for (const TensorInfo& t : e.biases) claimed += e.has_biases() ? t.elements() : 0;
    // A shard reads its own experts' bytes only, bf16 here, whatever the stack.
    EXPECT_EQ(e.bytes(), 2 * (3 * matrix + (e.has_biases() ? 2 * spec->expert_inter + spec->hidden : 0)));
    EXPECT_TRUE(digests.insert(e.digest).second) << "two experts with one digest";
  }
  if (GetParam().ignores) {
    EXPECT_LT(claimed, in_files);
  } else {
    EXPECT_EQ(claimed, in_files);
  }
  const auto text = DescribeModel(dir_, {.json = true});
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const auto json = nlohmann::json::parse(*text);
  EXPECT_EQ(json["family"], GetParam().family);
  EXPECT_EQ(json["params_total"], claimed);
  const uint64_t routed = manifest->experts.size() * (3 * matrix);
  const uint64_t active = uint64_t{spec->moe_layers()} * spec->gate.top_k * 3 * matrix;
  if (!spec->expert_bias) {
    EXPECT_EQ(json["params_active"], claimed - routed + active);
  }
  EXPECT_TRUE(DescribeModel(dir_).ok());
}

INSTANTIATE_TEST_SUITE_P(
    All, FamilyFolders,
    ::testing::Values(Folder{"dbrx", "dbrx"}, Folder{"deepseek_v2", "deepseek_v2"},
                      Folder{"deepseek_v2_lite", "deepseek_v2"}, Folder{"deepseek_v3", "deepseek_v3", true},
                      Folder{"dots1", "dots1"}, Folder{"ernie4_5_moe", "ernie4_5_moe"},
                      Folder{"glm4_moe", "glm4_moe"}, Folder{"gpt_oss", "gpt_oss"},
                      Folder{"granitemoe", "granitemoe"}, Folder{"granitemoeshared", "granitemoe"},
                      Folder{"grok1", "grok1"}, Folder{"hunyuan_v1_moe", "hunyuan_v1_moe"},
                      Folder{"kimi_k2", "deepseek_v3"}, Folder{"lfm2_moe", "lfm2_moe"},
                      Folder{"llama4", "llama4", true}, Folder{"minimax_m2", "minimax_m2"},
                      Folder{"mistral4", "mistral4"}, Folder{"mistral_large_3", "mistral_large_3"},
                      Folder{"mixtral", "mixtral"}, Folder{"olmoe", "olmoe"}, Folder{"phimoe", "phimoe"},
                      Folder{"qwen2_moe", "qwen2_moe"}, Folder{"qwen3_moe", "qwen3_moe"},
                      Folder{"qwen3_moe_fused", "qwen3_moe"}, Folder{"qwen3_next", "qwen3_next"},
                      Folder{"qwen3_5_moe", "qwen3_5_moe", true}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

nlohmann::json ConfigOf(const std::string& file) {
  return nlohmann::json::parse(std::ifstream(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + file));
}

// Mistral's own layout with apply_scale describes what the mistral4 class, whose golden holds, computes.
TEST(Families, ScaledYarnOfMistralsOwnLayoutIsThatOfTheClass) {
  nlohmann::json native = ConfigOf("mistral_large_3/params.json");
  const auto plain = ParseModelSpec(native.dump(), "x/params.json");
  native["yarn"]["apply_scale"] = true;
  const auto scaled = ParseModelSpec(native.dump(), "x/params.json");
  const auto golden = ParseModelSpec(ConfigOf("mistral4/config.json").dump(), "config.json");
  ASSERT_TRUE(plain.ok() && scaled.ok() && golden.ok()) << ToString(scaled.status());
  EXPECT_EQ(scaled->mla.scale, golden->mla.scale);
  EXPECT_LT(plain->mla.scale, scaled->mla.scale);
  EXPECT_EQ(scaled->rope.inv_freq, golden->rope.inv_freq);
  EXPECT_EQ(scaled->rope.attention_scaling, golden->rope.attention_scaling);
  EXPECT_EQ(scaled->tuning.beta, golden->tuning.beta);
  EXPECT_EQ(scaled->tuning.floor, golden->tuning.floor);
  EXPECT_EQ(scaled->gate.renormalize, golden->gate.renormalize);
  native["yarn"].erase("apply_scale");  // on unless it is off, as vLLM has it
  EXPECT_EQ(ParseModelSpec(native.dump(), "x/params.json")->mla.scale, golden->mla.scale);
}

TEST(Families, LayersOfQwen3Next) {
  nlohmann::json c = ConfigOf("qwen3_next/config.json");
  const auto read = [&] { return *ParseModelSpec(c.dump(), "config.json"); };
  const ModelSpec spec = read();
  EXPECT_EQ(spec.layers[0].mixer, Mixer::kDeltaNet);
  EXPECT_EQ(spec.layers[3].mixer, Mixer::kAttention);
  EXPECT_EQ(spec.delta_net.channels(), 2u * 32 + 64);
  EXPECT_EQ(spec.kv_page_bytes(), 4u * 16 * 2 * 2 * 32) << "of the one layer with attention";
  EXPECT_EQ(spec.state_floats(0), 3u * 128 + 4 * 16 * 16);
  EXPECT_EQ(spec.state_floats(3), 0u);
  EXPECT_EQ(spec.state_bytes(), 4u * 3 * spec.state_floats(0));
  EXPECT_EQ(spec.rope.dims, 8u);
  EXPECT_TRUE(spec.gqa.out_gate && spec.norm_plus_one && spec.shared_gate && spec.gate.renormalize);
  c.erase("layer_types");
  c["full_attention_interval"] = 2;
  std::string kinds;
  for (const LayerSpec& l : read().layers) kinds += l.mixer == Mixer::kDeltaNet ? 'd' : 'a';
  EXPECT_EQ(kinds, "dada");
  c["linear_value_head_dim"] = 17;  // whole panels of 16 lanes
  EXPECT_EQ(read().delta_net.head_state_floats(), 16u * 32);
}

// As the released Hunyuan-A13B writes them.
TEST(Families, HunyuanListsOfOneNumberALayerAreThatNumber) {
  nlohmann::json c = ConfigOf("hunyuan_v1_moe/config.json");
  const auto plain = ParseModelSpec(c.dump(), "config.json");
  c["moe_topk"] = {4, 4, 4};
  c["num_shared_expert"] = {1, 1, 1};
  c["moe_intermediate_size"] = {24, 24, 24};
  const auto lists = ParseModelSpec(c.dump(), "config.json");
  ASSERT_TRUE(plain.ok() && lists.ok()) << ToString(lists.status());
  EXPECT_EQ(lists->gate.top_k, plain->gate.top_k);
  EXPECT_EQ(lists->expert_inter, plain->expert_inter);
  EXPECT_EQ(lists->layers[1].shared_inter, plain->layers[1].shared_inter);
}

// Releases of DBRX leave moe_normalize_expert_weights out, which means the sum; null is none.
TEST(Families, DbrxDividesByTheSumUnlessNull) {
  nlohmann::json c = ConfigOf("dbrx/config.json");
  c["ffn_config"].erase("moe_normalize_expert_weights");
  const auto absent = ParseModelSpec(c.dump(), "config.json");
  ASSERT_TRUE(absent.ok()) << ToString(absent.status());
  EXPECT_TRUE(absent->gate.renormalize);
  EXPECT_EQ(absent->gate.renormalize_norm, 1);
  c["ffn_config"]["moe_normalize_expert_weights"] = nullptr;
  EXPECT_FALSE(ParseModelSpec(c.dump(), "config.json")->gate.renormalize);
}

// Llama-4's releases write 4 for true.
TEST(Families, Llama4TuningMayBeANumber) {
  nlohmann::json c = ConfigOf("llama4/config.json");
  nlohmann::json& text = c.contains("text_config") ? c["text_config"] : c;
  text["attn_temperature_tuning"] = 4;
  const auto on = ParseModelSpec(c.dump(), "config.json");
  ASSERT_TRUE(on.ok()) << ToString(on.status());
  const auto tunes = [](const ModelSpec& spec) {
    return std::any_of(spec.layers.begin(), spec.layers.end(), [](const auto& l) { return l.tunes_queries; });
  };
  EXPECT_TRUE(tunes(*on));
  text["attn_temperature_tuning"] = 0;
  EXPECT_FALSE(tunes(*ParseModelSpec(c.dump(), "config.json")));
}

// A wrapper for pictures describes the text model in it, and its own keys fill what that leaves out.
TEST(Families, AWrappedTextModelIsThatModel) {
  nlohmann::json text = ConfigOf("mistral4/config.json");
  const auto bare = ParseModelSpec(text.dump(), "config.json");
  text.erase("tie_word_embeddings");
  nlohmann::json c = {{"model_type", "mistral3"}, {"text_config", text}, {"tie_word_embeddings", true}};
  std::vector<std::string> unread;
  const auto wrapped = ParseModelSpec(c.dump(), "config.json", &unread);
  ASSERT_TRUE(wrapped.ok()) << ToString(wrapped.status());
  EXPECT_EQ(wrapped->family, "mistral4");
  EXPECT_EQ(wrapped->mla.scale, bare->mla.scale);
  EXPECT_TRUE(wrapped->tied_embeddings);
  EXPECT_THAT(unread, ::testing::Not(::testing::Contains("text_config")));
  c["text_config"]["model_type"] = "llama";
  EXPECT_THAT(ToString(ParseModelSpec(c.dump(), "config.json").status()),
              ::testing::HasSubstr("model_type \"mistral3\" is not a known family"));
}

// As Mistral Small 4 is released: stacks of all experts in FP8, gate and up of an expert under one scale.
TEST(Families, HalvesOfAStackedExpertShareItsScale) {
  const auto spec = ParseModelSpec(ConfigOf("mistral4/config.json").dump(), "config.json");
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  const auto roles = ListRoles(*spec);
  ASSERT_TRUE(roles.ok());
  TensorIndex index;
  index.files = {"f"};
  uint64_t at = 0;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape, bool fp8) {
    TensorInfo t;
    t.name = name;
    t.shape = std::move(shape);
    t.dtype = fp8 ? DType::kF8E4m3 : DType::kBf16;
    t.range = ByteRange{0, at, t.elements() * DTypeBytes(t.dtype)};
    at += t.range.length;
    if (fp8) {
      t.coding = Coding::kFp8Block;
      t.scale_dtype = DType::kBf16;
      t.scales = ByteRange{0, at, 2 * t.shape[0]};
      at += t.scales.length;
    }
    index.tensors.push_back(t);
  };
  const uint64_t experts = spec->gate.experts, inter = spec->expert_inter, hidden = spec->hidden;
  for (const TensorRole& r : *roles) {
    if (r.part != ModelPart::kExperts) {
      add(r.name, r.shape, false);
    } else if (r.expert.value == 0 && r.expert_part == ExpertPart::kGate) {
      const std::string prefix = "model.layers." + std::to_string(r.layer.value) + ".mlp.experts.";
      add(prefix + "gate_up_proj", {experts, 2 * inter, hidden}, true);
      add(prefix + "down_proj", {experts, hidden, inter}, true);
    }
  }
  const std::vector<TensorInfo> stored = index.tensors;
  const auto manifest = ClaimTensors(*spec, index, "f");
  ASSERT_TRUE(manifest.ok()) << ToString(manifest.status());
  for (const ExpertEntry& e : manifest->experts) {
    const auto stack = [&](const char* name) {
      const std::string full =
          "model.layers." + std::to_string(e.layer.value) + ".mlp.experts." + std::string(name);
      return *std::find_if(stored.begin(), stored.end(), [&](const auto& t) { return t.name == full; });
    };
    const TensorInfo both = stack("gate_up_proj"), down = stack("down_proj");
    const uint64_t n = e.expert.value, half = inter * hidden;
    const ByteRange scale{0, both.scales.offset + 2 * n, 2};
    EXPECT_EQ(e.parts[0].range, (ByteRange{0, both.range.offset + 2 * n * half, half}));
    EXPECT_EQ(e.parts[1].range, (ByteRange{0, both.range.offset + (2 * n + 1) * half, half}));
    EXPECT_EQ(e.parts[0].scales, scale);
    EXPECT_EQ(e.parts[1].scales, scale);
    EXPECT_EQ(e.parts[2].scales, (ByteRange{0, down.scales.offset + 2 * n, 2}));
  }
}

// dots.llm1's releases name the method where others name the function.
TEST(Families, Dots1MayCallItsScoringNoaux) {
  nlohmann::json c = ConfigOf("dots1/config.json");
  c["scoring_func"] = "noaux_tc";
  EXPECT_TRUE(ParseModelSpec(c.dump(), "config.json").ok());
  c["scoring_func"] = "softmax";
  EXPECT_FALSE(ParseModelSpec(c.dump(), "config.json").ok());
}

}  // namespace
}  // namespace consilium
