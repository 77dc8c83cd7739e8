// Unusual but legal model shapes against a double-precision forward pass.
#include <gtest/gtest.h>

#include <cmath>

#include "common/base/hash.h"
#include "common/base/status.h"
#include "services/cli/local_decoder.h"
#include "tests/golden/double_oracle.h"
#include "tests/golden/tiny_cases.h"

namespace consilium {
namespace {

class OracleTest : public ::testing::TestWithParam<Case> {};

// Largest error allowed as a share of the largest logit. One f32 rounding is 6e-8; a logit lies behind some
// hundred roundings of three layers that mostly cancel: 1e-5 leaves room for them, and a wrong rule shows at
// 1e-2 or more.
constexpr double kShare = 1e-5;

TEST_P(OracleTest, LogitsAgree) {
  TemporaryFolder folder;
  std::string dir = std::string(CONSILIUM_SOURCE_DIR) + "/models/demo";
  if (!GetParam().demo) {
    dir = folder.path() + "/model";
    const auto status = WriteTinyCheckpoint(GetParam().config, dir);
    ASSERT_TRUE(status.ok()) << ToString(status);
  }
  const auto decoder = LocalDecoder::Open(dir).value();
  std::vector<TokenId> tokens;
  for (size_t i = 0; i < 70; ++i) tokens.push_back(static_cast<TokenId>(Mix(5, i) % decoder->spec().vocab));
  const std::vector<float> got = decoder->Prefill(decoder->AddSequence(), tokens, 16).value();
  const std::vector<double> truth = OracleLogits(dir, tokens);
  ASSERT_EQ(got.size(), truth.size());
  double largest = 0, error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i]));
    largest = std::max(largest, std::abs(truth[i]));
    error = std::max(error, std::abs(got[i] - truth[i]));
  }
  std::printf("%s: largest logit %.3g, largest error %.3g\n", GetParam().name, largest, error);
  EXPECT_LE(error, kShare * largest);
}

INSTANTIATE_TEST_SUITE_P(All, OracleTest, ::testing::ValuesIn(TinyCases()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace consilium
