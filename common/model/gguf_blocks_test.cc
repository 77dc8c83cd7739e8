// Every quantised block type of GGUF against what ggml's own Python package reads in the same bytes
// (testdata/gguf_blocks.json, made by tests/golden/make_gguf.py).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/stored_matrix.h"

namespace consilium {
namespace {

using Json = nlohmann::json;

std::vector<std::byte> Bytes(const std::string& hex) {
  std::vector<std::byte> out(hex.size() / 2);
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<std::byte>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  return out;
}

struct Case {
  const char* name;
  Coding coding;
  bool has_minimum;  // values are d * q + m: the package rounds twice, we once
};
constexpr Case kCases[] = {
    {"Q4_0", Coding::kQ4_0, false},   {"Q4_1", Coding::kQ4_1, true},  {"Q5_0", Coding::kQ5_0, false},
    {"Q5_1", Coding::kQ5_1, true},    {"Q8_0", Coding::kQ8_0, false}, {"Q4_K", Coding::kQ4K, true},
    {"Q5_K", Coding::kQ5K, true},     {"Q6_K", Coding::kQ6K, false},  {"MXFP4", Coding::kMxfp4Ggml, false},
    {"Q2_K", Coding::kQ2K, true},     {"Q3_K", Coding::kQ3K, false},  {"IQ4_NL", Coding::kIq4Nl, false},
    {"IQ4_XS", Coding::kIq4Xs, false}};

class GgufBlocks : public ::testing::TestWithParam<Case> {};

TEST_P(GgufBlocks, HoldTheValuesThatGgmlReads) {
  const Json all = Json::parse(std::ifstream(CONSILIUM_SOURCE_DIR "/common/model/testdata/gguf_blocks.json"));
  const Json& recorded = all.at(GetParam().name);
  const std::vector<std::byte> blocks = Bytes(recorded.at("blocks")), raw = Bytes(recorded.at("values"));
  TensorInfo t;
  t.name = GetParam().name;
  t.coding = GetParam().coding;
  t.dtype = DType::kU8;
  t.shape = {1, recorded.at("columns").get<uint64_t>()};
  t.range.length = blocks.size();
  const auto got = WidenTensor(t, {blocks, {}, {}});
  ASSERT_TRUE(got.ok()) << ToString(got.status());
  ASSERT_EQ(got->size() * sizeof(float), raw.size());
  std::vector<float> want(got->size());
  std::memcpy(want.data(), raw.data(), raw.size());
  float largest = 0;
  for (float w : want) largest = std::max(largest, std::abs(w));
  ASSERT_GT(largest, 0.0f);
  for (size_t i = 0; i < want.size(); ++i) {
    if (GetParam().has_minimum) {
      EXPECT_NEAR((*got)[i], want[i], 4 * largest * 0x1p-24f) << i;
    } else {
      EXPECT_EQ((*got)[i], want[i]) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufBlocks, ::testing::ValuesIn(kCases),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace consilium
