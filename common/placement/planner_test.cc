// Properties of the planner, over random clusters; a failure prints the seed.
#include "common/placement/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "common/base/status.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<PlanShard> Shards(uint32_t count, uint64_t capacity = 0) {
  std::vector<PlanShard> shards;
  for (uint32_t i = 0; i < count; ++i)
    shards.push_back({ShardId{i + 1}, "s" + std::to_string(i), capacity, 1, ""});
  return shards;
}

std::vector<PlanExpert> Experts(uint16_t layers, uint16_t per_layer, uint64_t bytes = 100) {
  std::vector<PlanExpert> experts;
  for (uint16_t l = 0; l < layers; ++l) {
    for (uint16_t e = 0; e < per_layer; ++e) experts.push_back({LayerId{l}, ExpertId{e}, bytes, 0, {}});
  }
  return experts;
}

// The world once the plan is carried out.
void Carry(const Plan& plan, std::vector<PlanExpert>* experts) {
  for (size_t e = 0; e < experts->size(); ++e) {
    (*experts)[e].copies.clear();
    for (const ShardId id : plan.shards[e]) (*experts)[e].copies.push_back({id, true, true});
  }
}

std::map<ShardId, uint32_t> Counts(const Plan& plan, const std::vector<PlanShard>& shards) {
  std::map<ShardId, uint32_t> counts;
  for (const PlanShard& s : shards) counts[s.id] = 0;
  for (const auto& ids : plan.shards) {
    for (const ShardId id : ids) ++counts[id];
  }
  return counts;
}

uint32_t Spread(const std::map<ShardId, uint32_t>& counts) {
  uint32_t low = UINT32_MAX, high = 0;
  for (const auto& [id, n] : counts) low = std::min(low, n), high = std::max(high, n);
  return high - low;
}

TEST(Planner, EqualExpertsAreSpreadToOneExpertOfDifference) {
  for (uint32_t shards = 1; shards <= 7; ++shards) {
    for (uint32_t replicas = 1; replicas <= 4; ++replicas) {
      const auto cluster = Shards(shards);
      const Plan plan = MakePlan(cluster, Experts(3, 16), {.replicas = replicas});
      EXPECT_TRUE(plan.fit.ok());
      EXPECT_LE(Spread(Counts(plan, cluster)), 1u) << shards << " shards, " << replicas << " replicas";
    }
  }
}

TEST(Planner, CopiesOfAnExpertLieOnDistinctShardsAndFewerShardsThanReplicasGetOneEach) {
  for (uint32_t shards = 1; shards <= 4; ++shards) {
    const Plan plan = MakePlan(Shards(shards), Experts(2, 8), {.replicas = 3});
    for (const auto& ids : plan.shards) {
      EXPECT_EQ(std::set<ShardId>(ids.begin(), ids.end()).size(), std::min(shards, 3u));
      EXPECT_EQ(ids.size(), std::min(shards, 3u));
    }
  }
}

TEST(Planner, AShardThatJoinsTakesItsShareAndNothingElseMoves) {
  for (uint32_t shards = 1; shards <= 6; ++shards) {
    auto experts = Experts(4, 16);
    Carry(MakePlan(Shards(shards), experts, {}), &experts);
    const Plan plan = MakePlan(Shards(shards + 1), experts, {});
    const uint32_t share = 64 / (shards + 1);
    EXPECT_GE(plan.loads, share);
    EXPECT_LE(plan.loads, share + 1);
    EXPECT_EQ(plan.surplus, plan.loads);
    EXPECT_EQ(Counts(plan, Shards(shards + 1))[ShardId{shards + 1}], plan.loads)
        << "only the new shard gets experts";
  }
}

TEST(Planner, OnlyTheCopiesOfALostShardAreMadeAgain) {
  auto experts = Experts(4, 16);
  const auto all = Shards(4);
  const Plan before = MakePlan(all, experts, {.replicas = 2});
  Carry(before, &experts);
  const uint32_t lost = Counts(before, all)[ShardId{4}];
  const Plan after = MakePlan(Shards(3), experts, {.replicas = 2});
  EXPECT_EQ(after.loads, lost);
  EXPECT_LE(Spread(Counts(after, Shards(3))), 1u);
}

TEST(Planner, ASettledPlacementIsLeftAlone) {
  auto experts = Experts(4, 16);
  std::mt19937_64 random(7);
  for (auto& e : experts) e.load = static_cast<double>(random() % 1000);
  Carry(MakePlan(Shards(5), experts, {.replicas = 2}), &experts);
  for (auto& e : experts)
    e.load *= 0.97 + 0.06 * static_cast<double>(random() % 1000) / 1000;  // noise of measuring
  const Plan again = MakePlan(Shards(5), experts, {.replicas = 2});
  EXPECT_EQ(again.loads, 0u);
  EXPECT_EQ(again.surplus, 0u);
}

TEST(Planner, AMoveUnderWayIsNotTakenBackByTheNextPlan) {
  auto experts = Experts(1, 4);
  for (auto& e : experts) e.copies = {{ShardId{1}, true, true}};
  experts[0].copies = {{ShardId{1}, true, false}, {ShardId{2}, false, true}};
  experts[2].copies = {{ShardId{1}, true, false}, {ShardId{2}, false, true}};
  const Plan plan = MakePlan(Shards(2), experts, {});
  EXPECT_THAT(plan.shards[0], ElementsAre(ShardId{2}));
  EXPECT_THAT(plan.shards[2], ElementsAre(ShardId{2}));
  EXPECT_EQ(plan.loads, 0u);
}

TEST(Planner, HotExpertsAreSpreadByLoad) {
  auto experts = Experts(1, 8);
  experts[0].load = experts[1].load = 1000;
  const Plan plan = MakePlan(Shards(2), experts, {});
  EXPECT_NE(plan.shards[0], plan.shards[1]);
}

TEST(Planner, AShardOfTwiceTheSpeedGetsTwiceTheExperts) {
  auto shards = Shards(2);
  shards[1].speed = 2;
  const auto counts = Counts(MakePlan(shards, Experts(1, 30), {}), shards);
  EXPECT_EQ(counts.at(ShardId{1}), 10u);
  EXPECT_EQ(counts.at(ShardId{2}), 20u);
}

TEST(Planner, CopiesPreferDistinctFailureDomains) {
  auto shards = Shards(4);
  shards[0].domain = shards[1].domain = "a";
  shards[2].domain = shards[3].domain = "b";
  const Plan plan = MakePlan(shards, Experts(2, 8), {.replicas = 2});
  for (const auto& ids : plan.shards) {
    ASSERT_EQ(ids.size(), 2u);
    EXPECT_LE(ids[0].value, 2u);
    EXPECT_GE(ids[1].value, 3u);
  }
}

TEST(Planner, WhatDoesNotFitIsAClearErrorAndTheRestIsPlanned) {
  const Plan plan = MakePlan(Shards(2, 300), Experts(1, 8), {});
  EXPECT_EQ(plan.fit.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(plan.fit), HasSubstr("2 of 8 found no shard (layer 0 expert 6 first)"));
  EXPECT_THAT(Message(plan.fit), HasSubstr("needs 800 bytes, 2 shards have 600"));
  EXPECT_EQ(plan.loads, 6u);
}

TEST(Planner, ABarredShardGetsNoCopy) {
  auto experts = Experts(1, 4);
  experts[2].barred = {ShardId{1}};
  experts[3].barred = {ShardId{1}, ShardId{2}};
  const Plan plan = MakePlan(Shards(2, 1000), experts, {});
  EXPECT_THAT(plan.shards[2], ElementsAre(ShardId{2}));
  EXPECT_TRUE(plan.shards[3].empty());
}

TEST(Planner, WithoutShardsNothingFits) {
  EXPECT_EQ(MakePlan({}, Experts(1, 2), {}).fit.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(MakePlan({}, {}, {}).fit.ok());
}

TEST(Planner, AFirstCopyTakesTheRoomOfASecondOne) {
  auto experts = Experts(1, 4);
  experts[0].copies = experts[1].copies = {{ShardId{1}, true, true}, {ShardId{2}, true, true}};
  const Plan plan = MakePlan(Shards(2, 200), experts, {.replicas = 2});
  EXPECT_TRUE(plan.fit.ok());
  for (const auto& ids : plan.shards) EXPECT_EQ(ids.size(), 1u);
  EXPECT_EQ(plan.short_copies, 4u);
}

TEST(Planner, TheByteBudgetBoundsMovesForBalanceOnly) {
  auto experts = Experts(1, 8);
  for (size_t e = 1; e < 8; ++e) experts[e].copies = {{ShardId{1}, true, true}};
  const Plan plan = MakePlan(Shards(2), experts, {.rebalance_bytes_max = 200});
  EXPECT_EQ(plan.loads, 3u) << "the missing expert and two moves";
}

TEST(Planner, ACopyMayGoOnlyOnceEveryWantedOneIsReady) {
  PlanExpert expert{LayerId{0}, ExpertId{0}, 1, 0, {{ShardId{1}, true, false}, {ShardId{2}, false, true}}};
  const std::vector<ShardId> wanted{ShardId{2}};
  EXPECT_FALSE(MayDrop(expert, wanted, ShardId{1}));
  expert.copies[1].ready = true;
  EXPECT_TRUE(MayDrop(expert, wanted, ShardId{1}));
  EXPECT_FALSE(MayDrop(expert, wanted, ShardId{2})) << "wanted";
  EXPECT_FALSE(MayDrop(expert, {}, ShardId{1})) << "nothing is wanted anywhere: the copy may be the last";
}

// Random clusters and histories: capacity is respected, copies are distinct, the same input gives the same
// plan, a plan carried out leaves nothing to do, and no first copy is missing where the sum of capacities
// allows it (equal sizes).
TEST(Planner, HoldsItsPropertiesOnRandomClusters) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    auto experts = Experts(1 + random() % 4, 1 + random() % 20);
    const uint32_t replicas = 1 + random() % 4;
    for (int round = 0; round < 4; ++round) {
      auto shards = Shards(1 + random() % 6);
      uint64_t places = 0;
      for (auto& s : shards) {
        s.capacity_bytes = 100 * (1 + random() % 60) + random() % 100;
        s.speed = 1 + static_cast<double>(random() % 3);
        s.domain = "d" + std::to_string(random() % 3);
        places += s.capacity_bytes / 100;
      }
      for (auto& e : experts) e.load = random() % 3 == 0 ? static_cast<double>(random() % 500) : 0;
      const PlanOptions options{.replicas = replicas};
      const Plan plan = MakePlan(shards, experts, options);
      EXPECT_EQ(plan.shards, MakePlan(shards, experts, options).shards);
      EXPECT_EQ(plan.fit.ok(), places >= experts.size());
      size_t placed = 0;
      for (const auto& ids : plan.shards) {
        EXPECT_EQ(std::set<ShardId>(ids.begin(), ids.end()).size(), ids.size());
        EXPECT_LE(ids.size(), replicas);
        placed += ids.empty() ? 0 : 1;
      }
      EXPECT_EQ(placed, std::min<size_t>(places, experts.size()));
      for (const auto& [id, count] : Counts(plan, shards)) {
        EXPECT_LE(count * 100, shards[id.value - 1].capacity_bytes);
      }
      Carry(plan, &experts);
      const Plan again = MakePlan(shards, experts, options);
      EXPECT_EQ(again.loads, 0u);
      EXPECT_EQ(again.surplus, 0u);
    }
  }
}

}  // namespace
}  // namespace consilium
