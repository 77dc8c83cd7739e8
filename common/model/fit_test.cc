#include "common/model/fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/inspect.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;

const std::string kDemo = std::string(CONSILIUM_SOURCE_DIR) + "/models/demo";

TEST(ParseByteCountTest, TakesBinaryAndDecimalUnits) {
  EXPECT_EQ(*ParseByteCount("24GiB"), uint64_t{24} << 30);
  EXPECT_EQ(*ParseByteCount("1.5G"), uint64_t{3} << 29);
  EXPECT_EQ(*ParseByteCount("80GB"), 80'000'000'000u);
  EXPECT_EQ(*ParseByteCount("4096"), 4096u);
  for (const char* bad : {"", "GiB", "0", "-1GiB", "24 GiB", "24gib", "1e30", "nan", "inf"})
    EXPECT_THAT(Message(ParseByteCount(bad).status()), HasSubstr("expected a size such as 24GiB")) << bad;
}

TEST(FitTest, RoomIsTheMostThatAProcessHolds) {
  for (const uint64_t memory : {100'000'001u, 100'000'003u, 123'456'789u, 4'000'000'000u}) {
    EXPECT_LE(ProcessBytes(RoomIn(memory)), memory);
    EXPECT_GT(ProcessBytes(RoomIn(memory) + 1), memory);
  }
  EXPECT_EQ(RoomIn(100'000'000), 0u);
  EXPECT_EQ(RoomIn(1), 0u);
}

// Memory that holds exactly `experts` experts of 1000 bytes.
uint64_t MemoryFor(uint64_t experts) { return ProcessBytes(1000 * experts); }

TEST(FitTest, AShardHoldsWholeExpertsOnly) {
  const std::vector<uint64_t> ten(10, 1000);
  EXPECT_EQ(FitShards(ten, MemoryFor(10)).shards, 1u);
  EXPECT_EQ(FitShards(ten, MemoryFor(10)).headroom_each, 0u);
  EXPECT_EQ(FitShards(ten, MemoryFor(10) - 1).shards, 2u);
  EXPECT_EQ(FitShards(ten, MemoryFor(10) - 1).experts_each, 5u);
  EXPECT_EQ(FitShards(ten, MemoryFor(3)).shards, 4u);  // 3 + 3 + 2 + 2
  EXPECT_EQ(FitShards(ten, MemoryFor(3)).bytes_each, 3000u);
  EXPECT_EQ(FitShards(ten, MemoryFor(1)).shards, 10u);
  EXPECT_EQ(FitShards(ten, MemoryFor(1) - 1).shards, 0u);
}

TEST(FitTest, LargeAndSmallExpertsShareShards) {
  std::vector<uint64_t> sizes(4, 3000);
  sizes.insert(sizes.end(), 8, 1000);
  const ShardFit fit = FitShards(sizes, MemoryFor(5));  // 3000 + 1000 + 1000 each
  EXPECT_EQ(fit.shards, 4u);
  EXPECT_EQ(fit.bytes_each, 5000u);
  EXPECT_EQ(fit.experts_each, 3u);
  // Two large ones do not fit together, so as many shards as large ones, though the bytes would fit three.
  EXPECT_EQ(FitShards(std::vector<uint64_t>(4, 3000), MemoryFor(5)).shards, 4u);
}

TEST(InspectTest, SaysWhatFits) {
  // A demo expert: 3 matrices of 64 x 256 in bf16, 98,304 bytes; 160 of them.
  InspectOptions options;
  options.json = true;
  options.shard_memory = {"110MB", std::to_string(ProcessBytes(98'304 * 53)), "1000"};
  options.tokens = 100;
  const auto text = DescribeModel(kDemo, options);
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const auto fit = nlohmann::json::parse(*text)["fit"];
  EXPECT_EQ(fit["bytes_per_expert"], 98'304);
  EXPECT_EQ(fit["expert_bytes"], 160 * 98'304);
  EXPECT_EQ(fit["shards"][0]["shards"], 2);  // 92 at most
  EXPECT_EQ(fit["shards"][0]["experts_per_shard"], 80);
  EXPECT_EQ(fit["shards"][0]["headroom_per_shard"], 110'000'000 - ProcessBytes(80 * 98'304));
  EXPECT_EQ(fit["shards"][1]["shards"], 4);  // 53 at most: 160 = 3 * 53 + 1
  EXPECT_EQ(fit["shards"][1]["experts_per_shard"], 40);
  EXPECT_TRUE(fit["shards"][2]["shards"].is_null());
  const uint64_t dense = fit["attention"]["dense_bytes"], kv = fit["attention"]["kv_bytes"];
  EXPECT_EQ(kv, 112 * (80 + 64) * 4 * 6);  // whole pages of 16 tokens
  EXPECT_EQ(fit["attention"]["memory"], ProcessBytes(dense + kv));
}

TEST(InspectTest, CountsExpertsAsTheyWillLieInMemory) {
  InspectOptions options;
  options.json = true;
  options.weights_as = "int8";  // a byte and 1/32 of a f16 scale for each weight
  const auto fit = nlohmann::json::parse(*DescribeModel(kDemo, options))["fit"];
  EXPECT_EQ(fit["bytes_per_expert"], 3 * 64 * 256 * 34 / 32);
  EXPECT_EQ(fit["shards"].size(), 3u);
  EXPECT_EQ(fit["shards"][0]["memory"], uint64_t{24} << 30);
  const auto refused =
      DescribeModel(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/kimi_k2_int4", options);
  EXPECT_THAT(Message(refused.status()), HasSubstr("--weights-as int8: expected experts in BF16"));
}

TEST(InspectTest, TextNamesEachPartAndBadSizesAreRefused) {
  InspectOptions options;
  options.shard_memory = {"24GiB", "1kB"};
  const auto text = DescribeModel(kDemo, options);
  ASSERT_TRUE(text.ok());
  EXPECT_THAT(*text, HasSubstr("shards of 24.0 GiB: 1, with up to 160 experts (15.0 MiB) each; 23."));
  EXPECT_THAT(*text, HasSubstr("too small for one expert"));
  EXPECT_THAT(*text, HasSubstr("with 768 tokens cached"));
  options.shard_memory = {"big"};
  EXPECT_THAT(Message(DescribeModel(kDemo, options).status()), HasSubstr("--shard-memory: expected a size"));
}

TEST(InspectTest, AGgufFileIsAModel) {
  InspectOptions options;
  options.json = true;
  const auto text = DescribeModel(
      std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/gguf_mixtral_q8_0/model.gguf", options);
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const auto json = nlohmann::json::parse(*text);
  EXPECT_EQ(json["family"], "mixtral");
  EXPECT_THAT(json["format"].get<std::string>(), HasSubstr("GGUF"));
  EXPECT_EQ(json["fit"]["shards"][0]["shards"], 1);
}

}  // namespace
}  // namespace consilium
