#include "common/model/quant_storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/stored_tensor_for_test.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;
using Method = QuantConfig::Method;

const char* kInt4 =
    R"({"quant_method":"compressed-tensors","format":"pack-quantized","ignore":["lm_head","re:.*attn.*"],
  "config_groups":{"g":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":true,"strategy":"group",
  "group_size":32,"actorder":null}}}})";

absl::StatusOr<QuantConfig> Parse(const Json& section) {
  return ParseQuantConfig(Json{{"quantization_config", section}}.dump(), "config.json");
}
std::string Error(const Json& section) { return ToString(Parse(section).status()); }

TEST(QuantConfig, KnownMethodsAreRead) {
  EXPECT_EQ(ParseQuantConfig("{}", "c")->method, Method::kNone);
  const auto fp8 = Parse(Json::parse(R"({"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,64]})"));
  ASSERT_TRUE(fp8.ok()) << ToString(fp8.status());
  EXPECT_EQ(fp8->method, Method::kFp8);
  EXPECT_EQ(fp8->block_rows, 128u);
  EXPECT_EQ(fp8->block_columns, 64u);
  const auto int4 = Parse(Json::parse(kInt4));
  ASSERT_TRUE(int4.ok()) << ToString(int4.status());
  EXPECT_EQ(int4->method, Method::kPacked);
  EXPECT_EQ(int4->group, 32u);
  EXPECT_THAT(int4->ignore, ElementsAre("lm_head", "re:.*attn.*"));
  EXPECT_EQ(Parse({{"quant_method", "mxfp4"}})->method, Method::kMxfp4);
}

TEST(QuantConfig, EverythingElseIsRefusedByName) {
  EXPECT_THAT(Error({{"quant_method", "hqq"}}), HasSubstr("\"hqq\" is not supported; supported: fp8"));
  EXPECT_THAT(Error({{"quant_method", "fp8"}, {"fmt", "e5m2"}}), HasSubstr("fmt: \"e5m2\""));
  const auto native = [](const char* text) { return ParseQuantConfig(text, "params.json"); };
  EXPECT_EQ(native(R"({"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}})")->method,
            Method::kFp8);
  EXPECT_THAT(ToString(native(R"({"quantization": {"group_size": 64, "bits": 4}})").status()),
              HasSubstr("params.json: quantization.qformat_weight: \"\" is not supported"));
  EXPECT_THAT(Error({{"quant_method", "fp8"}, {"weight_block_size", {0, 128}}}),
              HasSubstr("expected a number in 1.."));
  const auto changed = [](const char* path, const Json& value) {
    Json j = Json::parse(kInt4);
    j[Json::json_pointer(path)] = value;
    return Error(j);
  };
  EXPECT_THAT(changed("/format", "marlin-24"), HasSubstr("\"marlin-24\" is not supported"));
  EXPECT_THAT(changed("/config_groups/g/weights/num_bits", 3), HasSubstr("num_bits: 3 is not supported"));
  EXPECT_THAT(changed("/config_groups/g/weights/actorder", "group"), HasSubstr("actorder"));
  EXPECT_THAT(changed("/config_groups/g/weights/group_size", 48), HasSubstr("multiples of 32"));
  EXPECT_THAT(changed("/config_groups/h", 1), HasSubstr("config_groups.h.weights: expected an object"));
  EXPECT_THAT(changed("/config_groups", Json::object()), HasSubstr("config_groups: no group has weights"));
  EXPECT_THAT(changed("/config_groups/g/format", "nvfp4-pack-quantized"),
              HasSubstr("config_groups.g.format: \"nvfp4-pack-quantized\" is not supported"));
  EXPECT_THAT(changed("/ignore", {"re:(?=x)"}), HasSubstr("pattern \"re:(?=x)\" is not supported"));
}

std::string JoinError(const QuantConfig& config, std::vector<TensorInfo> tensors) {
  return ToString(JoinQuantised(config, {"f"}, &tensors));
}

TEST(JoinQuantised, Fp8WithoutBlocksHasOneScaleForEachMatrix) {
  QuantConfig config;
  config.method = Method::kFp8;
  std::vector<TensorInfo> tensors = {Stored("a.weight", DType::kF8E4m3, {300, 129}),
                                     Stored("a.weight_scale_inv", DType::kBf16, {}),
                                     Stored("a.activation_scale", DType::kBf16, {}),
                                     Stored("w.weight", DType::kF8E4m3, {300, 129}),
                                     Stored("w.qscale_weight", DType::kF32, {1}),
                                     Stored("w.qscale_act", DType::kF32, {1}),
                                     Stored("e.down_proj", DType::kF8E4m3, {4, 30, 129}),
                                     Stored("e.down_proj_scale_inv", DType::kBf16, {4, 1, 1}),
                                     Stored("e.down_proj_activation_scale", DType::kBf16, {4})};
  const absl::Status status = JoinQuantised(config, {"f"}, &tensors);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].scales.length, 2u);
  EXPECT_EQ(tensors[1].scales.length, 4u);
  EXPECT_EQ(tensors[2].scales.length, 8u);
  EXPECT_THAT(JoinError(config, {Stored("e.down_proj", DType::kF8E4m3, {4, 30, 129}),
                                 Stored("e.down_proj_scale_inv", DType::kBf16, {3, 1, 1})}),
              HasSubstr("expected shape [4, 1, 1]"));
}

TEST(JoinQuantised, Fp8TakesItsRaggedBlocks) {
  QuantConfig config;
  config.method = Method::kFp8;
  config.block_rows = config.block_columns = 128;
  std::vector<TensorInfo> tensors = {Stored("a.weight", DType::kF8E4m3, {300, 129}),
                                     Stored("a.weight_scale_inv", DType::kF32, {3, 2}),
                                     Stored("n.weight", DType::kBf16, {4})};
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].coding, Coding::kFp8Block);
  EXPECT_EQ(tensors[0].scales.length, 24u);
  EXPECT_THAT(JoinError(config, {Stored("a.weight", DType::kF8E4m3, {300, 129})}),
              HasSubstr("\"a.weight_scale_inv\" is missing"));
  EXPECT_THAT(JoinError(config, {Stored("a.weight", DType::kF8E4m3, {300, 129}),
                                 Stored("a.weight_scale_inv", DType::kF32, {2, 2})}),
              HasSubstr("expected shape [3, 2] beside [300, 129], got [2, 2]"));
  EXPECT_THAT(JoinError({}, {Stored("a.weight", DType::kF8E4m3, {300, 129})}), HasSubstr("does not say how"));
}

TEST(QuantConfig, ModelOptFp8IsFp8WithoutBlocks) {
  const auto fp8 = Parse({{"quant_method", "modelopt"}, {"quant_algo", "FP8"}});
  ASSERT_TRUE(fp8.ok()) << ToString(fp8.status());
  EXPECT_EQ(QuantScheme(*fp8), QuantScheme(*Parse({{"quant_method", "fp8"}})));
  EXPECT_THAT(Error({{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}}),
              HasSubstr("quant_algo: \"NVFP4\" is not supported with modelopt; supported: FP8"));
}

// Attention in FP8, the others, "lm_head" by name before the pattern, in 4 bits.
Json MixedSection() {
  Json section = Json::parse(kInt4);
  section["format"] = "mixed-precision";
  section["ignore"] = Json::array();
  Json& groups = section["config_groups"];
  groups["g"]["format"] = "pack-quantized";
  groups["a"] = {{"targets", {"re:.*self_attn", "re:lm"}},
                 {"format", "float-quantized"},
                 {"weights", {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}}}};
  groups["h"] = groups["g"];
  groups["h"]["targets"] = {"lm_head"};
  groups["cache"] = {{"targets", {"Attention"}}, {"weights", nullptr}};
  return section;
}

TEST(QuantConfig, GroupsOfModules) {
  const auto mixed = Parse(MixedSection());
  ASSERT_TRUE(mixed.ok()) << ToString(mixed.status());
  EXPECT_EQ(mixed->method, Method::kPacked);
  ASSERT_EQ(mixed->groups.size(), 2u);
  EXPECT_THAT(mixed->groups[0].modules, ElementsAre("re:.*self_attn", "re:lm"));
  EXPECT_EQ(mixed->groups[0].scheme.method, Method::kCompressedFp8);
  Json twice = MixedSection();
  twice["config_groups"]["a"]["targets"].push_back("Linear");
  EXPECT_THAT(Error(twice), HasSubstr("config_groups: two groups have the target \"Linear\""));
  Json ahead = MixedSection();
  ahead["config_groups"]["a"]["targets"] = {"re:(?=x)"};
  EXPECT_THAT(Error(ahead), HasSubstr("config_groups.a.targets: the pattern \"re:(?=x)\" is not supported"));
  Json alike = Json::parse(kInt4);
  alike["config_groups"]["h"] = alike["config_groups"]["g"];
  alike["config_groups"]["h"]["targets"] = {"re:(?=experts)"};  // need not be read
  const auto one = Parse(alike);
  ASSERT_TRUE(one.ok()) << ToString(one.status());
  EXPECT_TRUE(one->groups.empty());
  EXPECT_EQ(one->method, Method::kPacked);
}

TEST(JoinQuantised, EachModuleIsStoredAsItsGroupSays) {
  Json section = MixedSection();
  const QuantConfig config = *Parse(section);
  const auto module = [](const std::string& name, bool fp8) {
    if (fp8)
      return std::vector<TensorInfo>{Stored(name + ".weight", DType::kF8E4m3, {8, 64}),
                                     Stored(name + ".weight_scale", DType::kBf16, {8, 1})};
    return std::vector<TensorInfo>{Stored(name + ".weight_packed", DType::kI32, {8, 8}),
                                   Stored(name + ".weight_scale", DType::kBf16, {8, 2}),
                                   Stored(name + ".weight_shape", DType::kI64, {2})};
  };
  std::vector<TensorInfo> tensors;
  for (const auto& [name, fp8] :
       {std::pair("x.self_attn.q_proj", true), {"x.mlp", false}, {"lm_head", false}})
    for (const TensorInfo& t : module(name, fp8)) tensors.push_back(t);
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].coding, Coding::kFp8Block);
  EXPECT_EQ(tensors[1].coding, Coding::kInt4Group);
  EXPECT_EQ(tensors[2].coding, Coding::kInt4Group);
  EXPECT_THAT(JoinError(config, module("x.mlp", true)), HasSubstr("does not say how"));
  EXPECT_THAT(JoinError(config, module("x.self_attn.q_proj", false)), HasSubstr("does not say how"));
  section["config_groups"]["g"]["targets"] = {"re:.*experts"};  // nobody's rest
  EXPECT_THAT(JoinError(*Parse(section), module("x.mlp", false)), HasSubstr("does not say how"));
}

TEST(JoinQuantised, PackedInt4TakesScaleAndShapeUnlessIgnored) {
  const QuantConfig config = *Parse(Json::parse(kInt4));
  const auto module = [](const std::string& name) {
    return std::vector<TensorInfo>{Stored(name + ".weight_packed", DType::kI32, {8, 8}),
                                   Stored(name + ".weight_scale", DType::kBf16, {8, 2}),
                                   Stored(name + ".weight_shape", DType::kI64, {2})};
  };
  std::vector<TensorInfo> tensors = module("x.experts.0.up_proj");
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "x.experts.0.up_proj.weight");
  EXPECT_THAT(tensors[0].shape, ElementsAre(8, 64));
  EXPECT_EQ(tensors[0].coding, Coding::kInt4Group);
  EXPECT_THAT(JoinError(config, module("x.self_attn.q")), HasSubstr("lists x.self_attn.q as not quantised"));
  tensors = module("x");
  tensors.push_back(Stored("x.weight_g_idx", DType::kI32, {64}));
  EXPECT_THAT(JoinError(config, tensors), HasSubstr("weight_g_idx is not supported"));
  tensors = module("x");
  tensors[1].shape = {8, 3};
  EXPECT_THAT(JoinError(config, tensors), HasSubstr("expected shape [8, 2]"));
}

const char* kGptq = R"({"quant_method":"gptq","bits":4,"group_size":32,"desc_act":false,"sym":false})";
const char* kAwq = R"({"quant_method":"awq","bits":4,"group_size":32,"zero_point":true,"version":"GEMM"})";

TEST(QuantConfig, GptqAndAwqSayBitsGroupsAndZeroPoints) {
  const auto changed = [](const char* text, const char* key, const Json& value) {
    Json j = Json::parse(text);
    j[key] = value;
    return Parse(j);
  };
  const QuantConfig gptq = *Parse(Json::parse(kGptq)), awq = *Parse(Json::parse(kAwq));
  EXPECT_EQ(gptq.method, Method::kGptq);
  EXPECT_TRUE(gptq.zeros_minus_one);
  EXPECT_FALSE(gptq.symmetric);
  EXPECT_EQ(awq.group, 32u);
  EXPECT_FALSE(awq.symmetric);
  EXPECT_FALSE(changed(kGptq, "checkpoint_format", "gptq_v2")->zeros_minus_one);
  EXPECT_EQ(changed(kGptq, "group_size", -1)->group, 0u);
  EXPECT_TRUE(changed(kGptq, "dynamic", {{"-:.*gate", Json::object()}}).ok());
  const auto error = [&](const char* text, const char* key, const Json& value) {
    return ToString(changed(text, key, value).status());
  };
  EXPECT_THAT(error(kGptq, "bits", 3), HasSubstr("bits: 3 is not supported with gptq; supported: 4, 8"));
  EXPECT_THAT(error(kGptq, "bits", 8), HasSubstr("sym: false is not supported"));
  EXPECT_THAT(error(kGptq, "group_size", 16), HasSubstr("multiples of 32, -1"));
  EXPECT_THAT(error(kGptq, "desc_act", true), HasSubstr("desc_act: true is not supported with gptq"));
  EXPECT_THAT(error(kGptq, "checkpoint_format", "marlin"), HasSubstr("\"marlin\" is not supported"));
  EXPECT_THAT(error(kGptq, "dynamic", {{"+:.*down", {{"bits", 8}}}}), HasSubstr("dynamic: \"+:.*down\""));
  EXPECT_THAT(error(kAwq, "version", "gemv"),
              HasSubstr("\"gemv\" is not supported with awq; supported: gemm"));
  EXPECT_THAT(error(kAwq, "bits", 8), HasSubstr("bits: 8"));
}

TEST(JoinQuantised, WordsOfGptqAndAwqTakeScalesAndZeroPoints) {
  const auto module = [](std::vector<uint64_t> words) {
    return std::vector<TensorInfo>{
        Stored("x.qweight", DType::kI32, std::move(words)), Stored("x.qzeros", DType::kI32, {2, 2}),
        Stored("x.scales", DType::kF16, {2, 16}), Stored("x.g_idx", DType::kI32, {64})};
  };
  const QuantConfig gptq = *Parse(Json::parse(kGptq)), awq = *Parse(Json::parse(kAwq));
  std::vector<TensorInfo> tensors = module({8, 16});
  ASSERT_TRUE(JoinQuantised(gptq, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "x.weight");
  EXPECT_THAT(tensors[0].shape, ElementsAre(16, 64));
  EXPECT_EQ(tensors[0].zeros.length, 16u);
  EXPECT_TRUE(tensors[0].zeros_minus_one);
  tensors = module({64, 2});
  ASSERT_TRUE(JoinQuantised(awq, {"f"}, &tensors).ok());
  EXPECT_EQ(tensors[0].coding, Coding::kAwq);
  EXPECT_THAT(tensors[0].shape, ElementsAre(16, 64));
  EXPECT_THAT(JoinError(gptq, module({4, 16})), HasSubstr("expected shape [1, 16] beside [4, 16]"));
  tensors = module({8, 16});
  tensors.erase(tensors.begin() + 1);
  EXPECT_THAT(JoinError(gptq, tensors), HasSubstr("\"x.qzeros\" is missing"));
  tensors = module({8, 16});
  tensors[2].dtype = DType::kI32;
  EXPECT_THAT(JoinError(gptq, tensors), HasSubstr("expected scales in F32, F16 or BF16, got I32"));
  EXPECT_THAT(JoinError(gptq, module({7, 16})), HasSubstr("a matrix of 16 outputs and 56 inputs is not"));
  EXPECT_THAT(JoinError({}, module({8, 16})), HasSubstr("does not say how"));
}

TEST(JoinQuantised, PackedMxfp4TakesItsScales) {
  Json section = Json::parse(kInt4);
  section["format"] = "mxfp4-pack-quantized";
  EXPECT_THAT(Error(section), HasSubstr("type: \"int\" is not supported with mxfp4-pack-quantized"));
  section["config_groups"]["g"]["weights"]["type"] = "float";
  const QuantConfig config = *Parse(section);
  std::vector<TensorInfo> tensors = {Stored("x.weight_packed", DType::kU8, {8, 32}),
                                     Stored("x.weight_scale", DType::kU8, {8, 2})};
  EXPECT_THAT(JoinError(config, {tensors[0]}), HasSubstr("x.weight_scale\" is missing"));
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  EXPECT_EQ(tensors[0].coding, Coding::kMxfp4);
  EXPECT_THAT(tensors[0].shape, ElementsAre(8, 64));
  EXPECT_THAT(JoinError(config, {Stored("x.weight_packed", DType::kI32, {8, 32})}), HasSubstr("expected U8"));
}

TEST(JoinQuantised, BytesAndZeroPointsOfCompressedTensors) {
  QuantConfig config;
  config.method = Method::kInt8;
  std::vector<TensorInfo> tensors = {Stored("a.weight", DType::kI8, {8, 40}),
                                     Stored("a.weight_scale", DType::kBf16, {8, 1}),
                                     Stored("a.input_scale", DType::kF32, {1})};
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].coding, Coding::kInt8);
  EXPECT_THAT(JoinError(config, {Stored("a.weight", DType::kI8, {8, 40})}),
              HasSubstr("a.weight_scale\" is missing"));
  EXPECT_THAT(JoinError(config, {Stored("a.weight", DType::kI8, {8, 40}),
                                 Stored("a.weight_scale", DType::kBf16, {8, 1}),
                                 Stored("a.weight_zero_point", DType::kI8, {8, 1})}),
              HasSubstr("weight_zero_point is not supported in 8 bits"));
  Json section = Json::parse(kInt4);
  section["config_groups"]["g"]["weights"]["symmetric"] = false;
  const QuantConfig zero = *Parse(section);
  tensors = {Stored("x.weight_packed", DType::kI32, {8, 8}), Stored("x.weight_scale", DType::kBf16, {8, 2}),
             Stored("x.weight_shape", DType::kI64, {2})};
  EXPECT_THAT(JoinError(zero, tensors), HasSubstr("x.weight_zero_point\" is missing"));
  tensors.push_back(Stored("x.weight_zero_point", DType::kI32, {1, 2}));
  EXPECT_THAT(JoinError(*Parse(Json::parse(kInt4)), tensors), HasSubstr("the configuration says symmetric"));
  ASSERT_TRUE(JoinQuantised(zero, {"f"}, &tensors).ok());
  EXPECT_EQ(tensors[0].zeros.length, 8u);
}

TEST(JoinQuantised, Mxfp4StacksTakeTheirScales) {
  QuantConfig config;
  config.method = Method::kMxfp4;
  std::vector<TensorInfo> tensors = {Stored("e.gate_up_proj_blocks", DType::kU8, {2, 6, 3, 16}),
                                     Stored("e.gate_up_proj_scales", DType::kU8, {2, 6, 3})};
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "e.gate_up_proj");
  EXPECT_THAT(tensors[0].shape, ElementsAre(2, 6, 96));
}

}  // namespace
}  // namespace consilium
