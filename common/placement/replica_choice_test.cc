#include "common/placement/replica_choice.h"

#include <gtest/gtest.h>

namespace consilium {
namespace {

// `shards` shards; expert e of layer 0 is on every shard of holders[e].
PlacementView View(uint32_t shards, const std::vector<std::vector<uint32_t>>& holders) {
  std::vector<PlacementShard> list;
  for (uint32_t s = 0; s < shards; ++s) list.push_back({ShardId(s), "", "", 1});
  std::vector<PlacementView::Entry> entries;
  for (size_t e = 0; e < holders.size(); ++e) {
    PlacementView::Entry entry{LayerId(0), ExpertId(static_cast<uint16_t>(e)), {}};
    for (uint32_t s : holders[e]) entry.shards.push_back(ShardId(s));
    entries.push_back(entry);
  }
  return PlacementView(Epoch(), 1, static_cast<uint32_t>(holders.size()), list, entries);
}
std::vector<ShardLoad> Up(uint32_t shards) {
  std::vector<ShardLoad> loads;
  for (uint32_t s = 0; s < shards; ++s) {
    ShardLoad load;
    load.shard = ShardId(s);
    load.up = true;
    loads.push_back(load);
  }
  return loads;
}

TEST(ReplicaChoice, NoRowsGiveAnEmptyChoice) {
  ReplicaChoice choice;
  ChooseReplicas(View(1, {{0}}), LayerId(0), {}, Up(1), &choice);
  EXPECT_TRUE(choice.shards.empty());
  EXPECT_TRUE(choice.missing.empty());
}

TEST(ReplicaChoice, AllRowsOfOneExpertGoToOneShard) {
  const std::vector<uint16_t> experts{0, 1, 0, 1, 0, 1};
  ReplicaChoice choice;
  ChooseReplicas(View(2, {{0, 1}, {0, 1}}), LayerId(0), experts, Up(2), &choice);
  for (size_t i = 2; i < experts.size(); ++i) EXPECT_EQ(choice.shards[i], choice.shards[i - 2]);
  EXPECT_NE(choice.shards[0], choice.shards[1]) << "two equally loaded shards share the work";
}

TEST(ReplicaChoice, ADownShardIsNotChosen) {
  auto loads = Up(2);
  loads[0].up = false;
  ReplicaChoice choice;
  ChooseReplicas(View(2, {{0, 1}}), LayerId(0), std::vector<uint16_t>{0}, loads, &choice);
  EXPECT_EQ(choice.shards[0], ShardId(1));
}

TEST(ReplicaChoice, AnExpertWithoutAReplicaIsMissing) {
  ReplicaChoice choice;
  ChooseReplicas(View(1, {{0}, {}}), LayerId(0), std::vector<uint16_t>{0, 1}, Up(1), &choice);
  EXPECT_EQ(choice.shards[0], ShardId(0));
  EXPECT_EQ(choice.shards[1], kNoShard);
  EXPECT_EQ(choice.missing, std::vector<uint32_t>{1});
}

TEST(ReplicaChoice, TheEarliestExpectedCompletionWins) {
  auto loads = Up(3);
  loads[0].queued_rows = 100;
  loads[1].penalty_us = 50;
  loads[2].us_per_row = 10;
  ReplicaChoice choice;
  ChooseReplicas(View(3, {{0, 1, 2}}), LayerId(0), std::vector<uint16_t>{0}, loads, &choice);
  EXPECT_EQ(choice.shards[0], ShardId(2));
}

TEST(ReplicaChoice, TiesGoToTheLowestShard) {
  ReplicaChoice choice;
  ChooseReplicas(View(3, {{2, 1}}), LayerId(0), std::vector<uint16_t>{0}, Up(3), &choice);
  EXPECT_EQ(choice.shards[0], ShardId(1));
}

}  // namespace
}  // namespace consilium
