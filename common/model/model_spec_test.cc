#include "common/model/model_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/philox.h"
#include "common/base/status.h"
#include "common/testing/tiny_checkpoint.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json Deepseek() { return Json::parse(TinyConfigJson(TinyConfig{})); }
Json Mixtral() {
  TinyConfig c;
  c.family = TinyConfig::Family::kMixtral;
  return Json::parse(TinyConfigJson(c));
}
// The config of a golden folder; of a wrapped model its text part.
Json Golden(const std::string& family) {
  std::ifstream file(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + family + "/config.json");
  Json config = Json::parse(file);
  return config.contains("text_config") ? config["text_config"] : config;
}
ModelSpec Good(const Json& config) {
  auto spec = ParseModelSpec(config.dump(), "config.json");
  CHECK_MSG(spec.ok(), ToString(spec.status()));
  return *spec;
}
std::string Error(const Json& config) {
  return ToString(ParseModelSpec(config.dump(), "config.json").status());
}

TEST(ModelSpec, ReadsTheDemo) {
  const auto spec = ReadModelSpec(std::string(CONSILIUM_SOURCE_DIR) + "/models/demo");
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  EXPECT_EQ(spec->family, "deepseek_v3");
  EXPECT_EQ(spec->hidden, 256u);
  EXPECT_TRUE(spec->tied_embeddings);
  EXPECT_EQ(spec->layers.size(), 6u);
  EXPECT_EQ(spec->moe_layers(), 5u);
  EXPECT_EQ(spec->experts_total(), 160u);
  EXPECT_EQ(spec->layers[0].dense_inter, 384u);
  EXPECT_EQ(spec->layers[1].shared_inter, 64u);
  EXPECT_THAT(spec->eos_ids, ElementsAre(2));
  EXPECT_EQ(spec->attention_shape().k_dim, 80u);
  EXPECT_EQ(spec->attention_shape().v_dim, 64u);
  EXPECT_FLOAT_EQ(spec->mla.scale, 1 / std::sqrt(48.0f));
}

TEST(ModelSpec, StopIdsAreTheUnionOfConfigAndGenerationConfig) {
  const auto spec = ReadModelSpec(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/mixtral");
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  EXPECT_THAT(spec->eos_ids, ElementsAre(2, 4));
}

TEST(ModelSpec, LayerPatternsOfFamilies) {
  Json oss = Golden("gpt_oss");
  EXPECT_EQ(Good(oss).layers[0].window, 8u);
  EXPECT_EQ(Good(oss).layers[1].window, 0u);
  oss.erase("layer_types");
  EXPECT_EQ(Good(oss).layers[2].window, 8u);
  EXPECT_EQ(Good(oss).layers[3].window, 0u);
  Json qwen2 = Golden("qwen2_moe");
  qwen2.erase("layer_types");
  qwen2.update({{"use_sliding_window", true}, {"sliding_window", 7}, {"max_window_layers", 2}});
  std::string windows;
  for (const LayerSpec& l : Good(qwen2).layers) windows += std::to_string(l.window);
  EXPECT_EQ(windows, "700");
  Json dots = Golden("dots1");
  dots.erase("layer_types");
  dots.update({{"sliding_window", 7}, {"max_window_layers", 1}});
  windows.clear();
  for (const LayerSpec& l : Good(dots).layers) windows += std::to_string(l.window);
  EXPECT_EQ(windows, "077");
  Json qwen3 = Golden("qwen3_moe");
  qwen3.update({{"decoder_sparse_step", 2}});
  std::string kinds;
  for (const LayerSpec& l : Good(qwen3).layers) kinds += l.ffn == FfnKind::kMoe ? 'M' : 'd';
  EXPECT_EQ(kinds, "dMd");
  const ModelSpec llama = Good(Golden("llama4"));
  EXPECT_EQ(llama.layers[2].chunk, 16u);
  EXPECT_TRUE(llama.layers[3].tunes_queries && !llama.layers[3].rotates && llama.layers[3].chunk == 0);
}

TEST(ModelSpec, LayersOfLfm2) {
  Json c = Golden("lfm2_moe");
  const ModelSpec spec = Good(c);
  EXPECT_EQ(spec.layers[0].mixer, Mixer::kShortConv);
  EXPECT_EQ(spec.layers[1].mixer, Mixer::kAttention);
  EXPECT_EQ(spec.layers[0].dense_inter, 96u);
  EXPECT_EQ(spec.moe_layers(), 2u);
  EXPECT_EQ(spec.short_conv.taps, 3u);
  EXPECT_EQ(spec.kv_page_floats(0).all(), 0u);
  EXPECT_EQ(spec.kv_page_floats(1).k, 16u * 2 * 16);
  EXPECT_EQ(spec.kv_page_bytes(), 4u * 16 * 2 * 2 * 16);
  EXPECT_EQ(spec.state_bytes(), 4u * 2 * 2 * 64) << "of two layers the inputs of two tokens";
  EXPECT_TRUE(spec.tied_embeddings);
  c["tie_embedding"] = false;  // the releases' spelling wins
  EXPECT_FALSE(Good(c).tied_embeddings);
  c["use_expert_bias"] = false;
  EXPECT_FALSE(Good(c).gate.has_bias);
}

// Check value of the gpt-oss release: 1.3465736 on cosines and sines.
TEST(ModelSpec, YarnOfGptOssMultipliesItsTables) {
  Json c = Golden("gpt_oss");
  c["rope_parameters"]["factor"] = 32.0;
  EXPECT_NEAR(Good(c).rope.attention_scaling, 1.3465736, 1e-6);
}

// Hunyuan-A13B: theta 1e4, alpha 1000, heads of 128 lanes give the base 11,158,839.925.
TEST(ModelSpec, DynamicAlphaIsAnotherBase) {
  Json c = Golden("hunyuan_v1_moe");
  c["head_dim"] = 128;
  c["rope_parameters"] = {
      {"rope_type", "dynamic"}, {"alpha", 1000.0}, {"factor", 1.0}, {"rope_theta", 10000.0}};
  EXPECT_NEAR(Good(c).rope.inv_freq[32], 1 / std::sqrt(11158839.925), 1e-9);
}

TEST(ModelSpec, LongropeHasTwoTables) {
  const ModelSpec spec = Good(Golden("phimoe"));
  EXPECT_EQ(spec.rope.original, 40u);
  EXPECT_FLOAT_EQ(spec.rope.attention_scaling, 1.1f);
  EXPECT_FLOAT_EQ(spec.rope.long_attention_scaling, 1.243163121016122f);
  EXPECT_EQ(spec.rope.long_inv_freq, spec.rope.inv_freq);  // as the reference; families/phimoe.cc
  Json c = Mixtral();
  const std::vector<double> ones(8, 1.0), twos(8, 2.0);
  c["rope_scaling"] = {{"type", "longrope"},
                       {"short_factor", ones},
                       {"long_factor", twos},
                       {"factor", 16.0},
                       {"original_max_position_embeddings", 16}};
  const RopeSpec both = Good(c).rope;
  EXPECT_FLOAT_EQ(both.inv_freq[3], 2 * both.long_inv_freq[3]);
  EXPECT_NEAR(both.long_attention_scaling, std::sqrt(2.0), 1e-6);
}

TEST(ModelSpec, KimiK2IsTheSameClass) {
  Json c = Deepseek();
  c["model_type"] = "kimi_k2";
  EXPECT_EQ(Good(c).family, "deepseek_v3");
}

TEST(ModelSpec, LayersBeforeFirstKAreDenseAndFrequencyThinsTheRest) {
  Json c = Deepseek();
  c["num_hidden_layers"] = 6;
  c["first_k_dense_replace"] = 1;
  c["moe_layer_freq"] = 2;
  std::string kinds;
  for (const LayerSpec& l : Good(c).layers) kinds += l.ffn == FfnKind::kMoe ? 'M' : 'd';
  EXPECT_EQ(kinds, "ddMdMd");
}

TEST(ModelSpec, BothRopeSpellingsGiveTheSameFrequencies) {
  Json old_spelling = Mixtral(), new_spelling = Mixtral();
  old_spelling["rope_theta"] = 500000.0;
  old_spelling["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  new_spelling.erase("rope_theta");
  new_spelling.erase("rope_scaling");
  new_spelling["rope_parameters"] = {{"rope_type", "linear"}, {"rope_theta", 500000.0}, {"factor", 4.0}};
  EXPECT_EQ(Good(old_spelling).rope.inv_freq, Good(new_spelling).rope.inv_freq);
  EXPECT_FLOAT_EQ(Good(old_spelling).rope.inv_freq[0], 0.25f);
}

// Check values of MODELS.md for DeepSeek-V3: low 10, high 23 of 32 lanes; scale times 1.8738542.
TEST(ModelSpec, YarnKeepsFastLanesAndStretchesSlowOnes) {
  Json c = Deepseek();
  c["qk_nope_head_dim"] = 128;
  c["qk_rope_head_dim"] = 64;
  c["max_position_embeddings"] = 163840;
  c["rope_scaling"] = {{"type", "yarn"},       {"factor", 40},   {"original_max_position_embeddings", 4096},
                       {"beta_fast", 32},      {"beta_slow", 1}, {"mscale", 1.0},
                       {"mscale_all_dim", 1.0}};
  const ModelSpec spec = Good(c);
  const auto base = [](int i) { return std::pow(10000.0, -2.0 * i / 64); };
  EXPECT_NEAR(spec.rope.inv_freq[10] / base(10), 1.0, 1e-6);
  EXPECT_LT(spec.rope.inv_freq[11] / base(11), 0.99);
  EXPECT_GT(spec.rope.inv_freq[22] / base(22), 1.5 / 40);
  EXPECT_NEAR(spec.rope.inv_freq[23] / base(23), 1.0 / 40, 1e-7);
  EXPECT_FLOAT_EQ(spec.rope.attention_scaling, 1.0f);
  EXPECT_NEAR(spec.mla.scale, 0.1352338, 1e-6);
}

TEST(ModelSpec, YarnWithoutMscaleScalesTheTables) {
  Json c = Mixtral();
  c["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 8}, {"original_max_position_embeddings", 64}};
  EXPECT_NEAR(Good(c).rope.attention_scaling, 0.1 * std::log(8) + 1, 1e-6);
}

TEST(ModelSpec, Llama3WithEqualBandsHasNoMiddle) {
  Json c = Mixtral();
  c["rope_scaling"] = {{"rope_type", "llama3"},
                       {"factor", 16},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 1.0},
                       {"original_max_position_embeddings", 64}};
  for (float w : Good(c).rope.inv_freq) EXPECT_TRUE(std::isfinite(w));
  EXPECT_FLOAT_EQ(Good(c).rope.inv_freq[0], 1.0f);
  EXPECT_NEAR(Good(c).rope.inv_freq[7], std::pow(10000.0, -14.0 / 16) / 16, 1e-9);
}

struct BadConfig {
  const char* name;
  const char* base;  // d, m or a golden folder
  Json patch;
  const char* message;
};

class BadConfigs : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, IsOneClearError) {
  const std::string base = GetParam().base;
  Json c = base == "d" ? Deepseek() : base == "m" ? Mixtral() : Golden(base);
  c.merge_patch(GetParam().patch);
  EXPECT_THAT(Error(c), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadConfigs,
    ::testing::Values(
        BadConfig{"family",
                  "m",
                  {{"model_type", "gpt9"}},
                  "UNIMPLEMENTED: config.json: model_type \"gpt9\" is not a known family; known: "
                  "dbrx, deepseek_v2, deepseek_v3, kimi_k2, dots1, "},
        BadConfig{"zero_hidden",
                  "m",
                  {{"hidden_size", 0}},
                  "INVALID_ARGUMENT: config.json: hidden_size: expected an integer in 1..131072, got 0"},
        BadConfig{"huge_hidden",
                  "m",
                  {{"hidden_size", 1e18}},
                  "hidden_size: expected an integer in 1..131072, got 1e+18"},
        BadConfig{"negative", "m", {{"num_hidden_layers", -1}}, "num_hidden_layers: expected an integer"},
        BadConfig{"text", "m", {{"num_hidden_layers", "3"}}, "got \"3\""},
        BadConfig{"fraction", "m", {{"num_hidden_layers", 3.5}}, "got 3.5"},
        BadConfig{"missing", "m", {{"num_local_experts", nullptr}}, "num_local_experts: missing"},
        BadConfig{"heads",
                  "m",
                  {{"num_attention_heads", 3}, {"num_key_value_heads", 2}},
                  "expected a divisor of num_attention_heads 3, got 2"},
        BadConfig{"top_k", "m", {{"num_experts_per_tok", 9}}, "expected at most num_local_experts 8, got 9"},
        BadConfig{"odd_head", "m", {{"head_dim", 7}}, "head_dim: expected an even number, got 7"},
        BadConfig{"act",
                  "m",
                  {{"hidden_act", "relu"}},
                  "UNIMPLEMENTED: config.json: hidden_act: \"relu\" is not supported; supported: silu, "
                  "gelu_pytorch_tanh"},
        BadConfig{"quantised",
                  "m",
                  {{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e5m2"}}}},
                  "quantization_config.fmt: \"e5m2\" is not supported; supported: e4m3, float8_e4m3fn"},
        BadConfig{"longrope",
                  "m",
                  {{"rope_scaling", {{"type", "longrope"}}}},
                  "rope_scaling.short_factor: expected 8 numbers, got 0"},
        BadConfig{"rope_type",
                  "m",
                  {{"rope_scaling", {{"type", "spiral"}}}},
                  "rope_scaling.rope_type: \"spiral\" is not supported"},
        BadConfig{"partial",
                  "m",
                  {{"partial_rotary_factor", 0.5}},
                  "UNIMPLEMENTED: config.json: partial_rotary_factor: this family rotates whole heads"},
        BadConfig{"mamba",
                  "m",
                  {{"model_type", "granitemoehybrid"}},
                  "UNIMPLEMENTED: config.json: model_type: \"granitemoehybrid\" is not supported: its Mamba "
                  "layers are not implemented"},
        BadConfig{"next_layers",
                  "qwen3_next",
                  {{"layer_types", {"full_attention"}}},
                  "layer_types: expected one for each of 4 layers, got 1"},
        BadConfig{"next_types",
                  "qwen3_next",
                  {{"layer_types", {"conv", "conv", "conv", "full_attention"}}},
                  "layer_types: \"conv\" is not supported; supported: linear_attention, full_attention"},
        BadConfig{"next_interval",
                  "qwen3_next",
                  {{"layer_types", nullptr}, {"full_attention_interval", 5}},
                  "layer_types: a model without any full_attention is not supported"},
        BadConfig{"next_heads",
                  "qwen3_next",
                  {{"linear_num_value_heads", 3}},
                  "linear_num_value_heads: expected a multiple of linear_num_key_heads 2, got 3"},
        BadConfig{"next_key",
                  "qwen3_next",
                  {{"linear_key_head_dim", 0}},
                  "linear_key_head_dim: expected an integer in 1..1024, got 0"},
        BadConfig{"next_value",
                  "qwen3_next",
                  {{"linear_value_head_dim", nullptr}},
                  "linear_value_head_dim: missing"},
        BadConfig{"next_taps",
                  "qwen3_next",
                  {{"linear_conv_kernel_dim", 1}},
                  "linear_conv_kernel_dim: expected an integer in 2..64, got 1"},
        BadConfig{"next_rotation",
                  "qwen3_next",
                  {{"rope_parameters", {{"partial_rotary_factor", nullptr}}}},
                  "partial_rotary_factor: missing"},
        BadConfig{
            "next_bias", "qwen3_next", {{"attention_bias", true}}, "attention_bias: true is not supported"},
        BadConfig{
            "hunyuan_mlp_bias", "hunyuan_v1_moe", {{"mlp_bias", true}}, "mlp_bias: true is not supported"},
        BadConfig{"hunyuan_head",
                  "hunyuan_v1_moe",
                  {{"attention_head_dim", 2}},
                  "attention_head_dim: expected the lanes of a head"},
        BadConfig{"hunyuan_scale",
                  "hunyuan_v1_moe",
                  {{"routed_scaling_factor", 2.5}},
                  "routed_scaling_factor: this family has none; supported: 1"},
        BadConfig{"minimax_linear",
                  "minimax_m2",
                  {{"attn_type_list", {1, 0}}},
                  "attn_type_list: layers of linear attention (0) are not implemented"},
        BadConfig{"minimax_residual",
                  "minimax_m2",
                  {{"layernorm_mlp_beta", 0.5}},
                  "layernorm_mlp_beta: scaled residuals are not implemented"},
        BadConfig{"qwen3_bias", "qwen3_moe", {{"qkv_bias", true}}, "qkv_bias: true is not supported"},
        BadConfig{"qwen3_shared",
                  "qwen3_moe",
                  {{"shared_expert_intermediate_size", 8}},
                  "shared_expert_intermediate_size: a shared expert is not implemented in this family"},
        BadConfig{"glm_lanes",
                  "glm4_moe",
                  {{"rope_parameters", {{"partial_rotary_factor", 0.01}}}},
                  "expected an even number of rotary lanes in 2..1024, got 0"},
        BadConfig{"v2_method",
                  "deepseek_v2",
                  {{"topk_method", "noaux_tc"}},
                  "topk_method: \"noaux_tc\" is not supported; supported: greedy, group_limited_greedy"},
        BadConfig{
            "v2_norm", "deepseek_v2", {{"norm_topk_prob", true}}, "norm_topk_prob: true is not supported"},
        BadConfig{"v2_scoring", "deepseek_v2", {{"scoring_func", "sigmoid"}}, "supported: softmax"},
        BadConfig{"dbrx_norm",
                  "dbrx",
                  {{"ffn_config", {{"moe_normalize_expert_weights", 3}}}},
                  "ffn_config.moe_normalize_expert_weights: only norms 1 and 2 are supported"},
        BadConfig{"dbrx_act",
                  "dbrx",
                  {{"ffn_config", {{"ffn_act_fn", {{"name", "relu"}}}}}},
                  "ffn_config.ffn_act_fn.name: \"relu\" is not supported"},
        BadConfig{
            "dbrx_attention", "dbrx", {{"attn_config", nullptr}}, "attn_config: missing; expected an object"},
        BadConfig{"ernie_bias",
                  "ernie4_5_moe",
                  {{"use_bias", true}},
                  "use_bias: true with tie_word_embeddings is not supported"},
        BadConfig{"oss_layers",
                  "gpt_oss",
                  {{"layer_types", {"full_attention"}}},
                  "layer_types: expected one for each of 4 layers, got 1"},
        BadConfig{"oss_types",
                  "gpt_oss",
                  {{"layer_types", {"a", "full_attention", "full_attention", "full_attention"}}},
                  "layer_types: \"a\" is not supported; supported: full_attention, sliding_attention"},
        BadConfig{"oss_window", "gpt_oss", {{"sliding_window", nullptr}}, "sliding_window: missing"},
        BadConfig{"granite_positions",
                  "granitemoe",
                  {{"position_embedding_type", "nope"}},
                  "position_embedding_type: \"nope\" is not supported; supported: rope"},
        BadConfig{"grok_act", "grok1", {{"hidden_act", "silu"}}, "supported: gelu_pytorch_tanh"},
        BadConfig{"hunyuan_layers",
                  "hunyuan_v1_moe",
                  {{"moe_topk", {4, 2, 4}}},
                  "moe_topk: values that differ from layer to layer are not supported"},
        BadConfig{"hunyuan_cla", "hunyuan_v1_moe", {{"use_cla", true}}, "use_cla: true is not supported"},
        BadConfig{"llama4_top_k",
                  "llama4",
                  {{"num_experts_per_tok", 2}},
                  "num_experts_per_tok: 2 is not supported"},
        BadConfig{"llama4_rotation",
                  "llama4",
                  {{"no_rope_layers", {1, 0}}},
                  "no_rope_layers: expected one for each of 4 layers, got 2"},
        BadConfig{"lfm2_layers",
                  "lfm2_moe",
                  {{"layer_types", {"conv", "full_attention"}}},
                  "layer_types: expected one for each of 3 layers, got 2"},
        BadConfig{"lfm2_types",
                  "lfm2_moe",
                  {{"layer_types", {"conv", "linear_attention", "conv"}}},
                  "layer_types: \"linear_attention\" is not supported; supported: conv, full_attention"},
        BadConfig{"lfm2_no_types",
                  "lfm2_moe",
                  {{"layer_types", nullptr}},
                  "layer_types: expected one for each of 3 layers, got 0"},
        BadConfig{"lfm2_no_attention",
                  "lfm2_moe",
                  {{"layer_types", {"conv", "conv", "conv"}}},
                  "layer_types: a model without any full_attention is not supported"},
        BadConfig{"lfm2_taps",
                  "lfm2_moe",
                  {{"conv_L_cache", 65}},
                  "conv_L_cache: expected an integer in 1..64, got 65"},
        BadConfig{"lfm2_no_taps", "lfm2_moe", {{"conv_L_cache", nullptr}}, "conv_L_cache: missing"},
        BadConfig{"lfm2_bias", "lfm2_moe", {{"conv_bias", "no"}}, "conv_bias: expected"},
        BadConfig{"lfm2_dense", "lfm2_moe", {{"intermediate_size", nullptr}}, "intermediate_size: missing"},
        BadConfig{"lfm2_act", "lfm2_moe", {{"hidden_act", "gelu"}}, "hidden_act: \"gelu\" is not supported"},
        BadConfig{"minimax_shared",
                  "minimax_m2",
                  {{"shared_intermediate_size", 8}},
                  "a shared expert is not implemented"},
        BadConfig{"minimax_score", "minimax_m2", {{"scoring_func", "softmax"}}, "supported: sigmoid"},
        BadConfig{"olmoe_clip", "olmoe", {{"clip_qkv", -1}}, "clip_qkv: expected a number in"},
        BadConfig{"phi_top_k", "phimoe", {{"num_experts_per_tok", 3}}, "supported: 2"},
        BadConfig{"phi_head",
                  "phimoe",
                  {{"tie_word_embeddings", true}},
                  "lm_head_bias: true with tie_word_embeddings"},
        BadConfig{"phi_factors",
                  "phimoe",
                  {{"rope_scaling", {{"long_factor", {1.0}}}}},
                  "rope_scaling.long_factor: expected 8 numbers, got 1"},
        BadConfig{"qwen_shared",
                  "qwen2_moe",
                  {{"shared_expert_intermediate_size", 0}},
                  "shared_expert_intermediate_size: expected an integer in 1..131072, got 0"},
        BadConfig{"qwen_dense",
                  "qwen3_moe",
                  {{"mlp_only_layers", {0}}, {"intermediate_size", nullptr}},
                  "intermediate_size: missing"},
        BadConfig{"rope_text", "m", {{"rope_scaling", "yarn"}}, "rope_scaling: expected an object"},
        BadConfig{
            "eos", "m", {{"eos_token_id", 99999}}, "eos_token_id: expected integers in 0..319, got 99999"},
        BadConfig{"many_experts",
                  "m",
                  {{"num_local_experts", 4096}, {"num_hidden_layers", 4096}},
                  "16777216 routed experts"},
        BadConfig{"topk_method",
                  "d",
                  {{"topk_method", "greedy"}},
                  "topk_method: \"greedy\" is not supported; supported: noaux_tc"},
        BadConfig{"scoring",
                  "d",
                  {{"scoring_func", "softmax"}},
                  "scoring_func: \"softmax\" is not supported; supported: sigmoid"},
        BadConfig{
            "groups", "d", {{"n_group", 3}}, "n_group: expected a divisor of n_routed_experts 8, got 3"},
        BadConfig{"kept", "d", {{"topk_group", 3}}, "topk_group: expected at most n_group 2, got 3"},
        BadConfig{"lone", "d", {{"n_group", 8}, {"topk_group", 4}}, "at least two experts a group, got 1"},
        BadConfig{"kept_few",
                  "d",
                  {{"num_experts_per_tok", 5}},
                  "num_experts_per_tok: expected at most the 4 experts of the kept groups, got 5"},
        BadConfig{"kv_heads",
                  "d",
                  {{"num_key_value_heads", 1}},
                  "num_key_value_heads: expected num_attention_heads 2"},
        BadConfig{"eps", "d", {{"rms_norm_eps", "1e-6"}}, "rms_norm_eps: expected a number"}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(ModelSpec, TextThatIsNotJsonNamesThePlace) {
  const auto error = [](const char* text) { return ToString(ParseModelSpec(text, "config.json").status()); };
  EXPECT_THAT(error("{\"hidden_size\": NaN}"), HasSubstr("config.json: not valid JSON"));
  EXPECT_THAT(error("{\"hidden_size\": 1e999}"), HasSubstr("config.json: not valid JSON"));
  EXPECT_THAT(error(""), HasSubstr("config.json: not valid JSON"));
  EXPECT_THAT(error("[1]"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(error("{\"a\": 1, \"a\": 2}"), HasSubstr("key \"a\" comes twice"));
  EXPECT_THAT(error("{}"), HasSubstr("model_type: missing"));
  EXPECT_THAT(error(std::string(200000, '[').c_str()), HasSubstr("not valid JSON"));
}

TEST(ModelSpec, EveryDamagedConfigIsAnErrorOrAnotherModel) {
  std::vector<std::string> configs = {Deepseek().dump(), Mixtral().dump()};
  for (const char* family :
       {"dbrx", "ernie4_5_moe", "gpt_oss", "granitemoeshared", "grok1", "hunyuan_v1_moe", "lfm2_moe",
        "llama4", "minimax_m2", "mistral4", "phimoe", "qwen2_moe", "qwen3_next"}) {
    configs.push_back(Golden(family).dump());
  }
  for (const std::string& good : configs) {
    for (uint32_t round = 0; round < 1000; ++round) {
      std::string bad = good;
      for (uint32_t k = 0; k < 1 + round % 3; ++k) {
        const auto at = static_cast<size_t>(PhiloxUniform(7, k, round) * static_cast<double>(bad.size()));
        constexpr std::string_view kBytes = "0123456789.-eE\"{}[],:nul \x80";
        bad[at] =
            kBytes[static_cast<size_t>(PhiloxUniform(8, k, round) * static_cast<double>(kBytes.size()))];
      }
      const auto spec = ParseModelSpec(bad, "config.json");
      EXPECT_TRUE(spec.ok() || !Message(spec.status()).empty());
    }
  }
}

}  // namespace
}  // namespace consilium
