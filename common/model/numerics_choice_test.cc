#include "common/model/numerics_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/status.h"

namespace consilium {
namespace {

Manifest Golden(const std::string& name) {
  auto manifest = OpenManifest(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + name, "");
  EXPECT_TRUE(manifest.ok()) << ToString(manifest.status());
  return *std::move(manifest);
}

struct Case {
  const char* model;
  const char* numerics;
  const char* weights_as;
  const char* name;
  bool integer_rows;
};

TEST(NumericsChoice, NamesTheClassAndTheFormOfRows) {
  const Case cases[] = {
      {"mixtral", "f32", "stored", "f32", false},
      {"mixtral", "auto", "stored", "f32", false},
      {"mixtral", "i8g32", "stored", "i8g32", false},  // bf16 keeps its chain
      {"mixtral", "f32", "int8", "f32+int8", false},
      {"mixtral", "auto", "int8", "i8g32+int8", true},
      {"mixtral", "i8g32", "int4", "i8g32+int4", true},
      {"gguf_mixtral_q8_0", "f32", "stored", "f32", false},
      {"gguf_mixtral_q8_0", "auto", "stored", "i8g32", true},
      {"gguf_qwen3moe_q4_k_q6_k", "auto", "stored", "i8g32", true},
      {"kimi_k2_int4", "auto", "stored", "i8g32", true},
      {"gpt_oss_mxfp4", "auto", "stored", "i8g32", true},
      {"deepseek_v3_fp8", "auto", "stored", "f32", false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.model) + " " + c.numerics + " " + c.weights_as);
    const auto choice = ChooseNumerics({c.numerics, c.weights_as}, Golden(c.model));
    ASSERT_TRUE(choice.ok()) << ToString(choice.status());
    EXPECT_EQ(choice->name(), c.name);
    EXPECT_EQ(choice->integer_rows, c.integer_rows);
  }
}

TEST(NumericsChoice, BytesOfAQuantisedExpertAreThoseOfItsMatrices) {
  const Manifest manifest = Golden("mixtral");
  const auto store = OpenFolderStore(manifest);
  const ExpertEntry& entry = manifest.experts[3];
  for (const char* as : {"int8", "int4"}) {
    const auto choice = ChooseNumerics({"f32", as}, manifest);
    ASSERT_TRUE(choice.ok());
    kernels::QuantError error;
    const auto weights = LoadExpert(entry, store.get(), choice->weights_as, &error);
    ASSERT_TRUE(weights.ok()) << ToString(weights.status());
    EXPECT_EQ(choice->ExpertBytes(entry), weights->bytes());
    EXPECT_GT(error.relative(), 0.0);
    EXPECT_LT(error.relative(), choice->weights_as == WeightsAs::kInt8 ? 0.01 : 0.15);
  }
}

TEST(NumericsChoice, RefusesWhatIsQuantisedAlreadyAndUnknownNames) {
  const auto twice = ChooseNumerics({"f32", "int4"}, Golden("gguf_mixtral_q8_0"));
  EXPECT_EQ(twice.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(twice.status()),
              ::testing::HasSubstr("expected experts in BF16, F16 or F32, got Q8_0"));
  EXPECT_FALSE(ChooseNumerics({"f16", "stored"}, Golden("mixtral")).ok());
  EXPECT_FALSE(ChooseNumerics({"f32", "int2"}, Golden("mixtral")).ok());
}

}  // namespace
}  // namespace consilium
