#include "common/placement/placement_view.h"

#include <gtest/gtest.h>

namespace consilium {
namespace {

PlacementShard Shard(uint32_t id) { return {ShardId(id), "shard" + std::to_string(id), "", 1}; }
PlacementView::Entry Entry(uint16_t layer, uint16_t expert, std::vector<uint32_t> shards) {
  PlacementView::Entry e{LayerId(layer), ExpertId(expert), {}};
  for (uint32_t s : shards) e.shards.push_back(ShardId(s));
  return e;
}

TEST(PlacementView, AnEmptyViewHasNoReplicas) {
  const PlacementView view;
  EXPECT_TRUE(view.replicas(LayerId(0), ExpertId(0)).empty());
  EXPECT_FALSE(view.covered(LayerId(0)));
  EXPECT_EQ(view.FindShard(ShardId(1)), nullptr);
}

TEST(PlacementView, ReplicasAscendAndAppearOnce) {
  const PlacementView view(Epoch::Make(1, 2), 2, 3, {Shard(9), Shard(4)}, {Entry(1, 2, {9, 4, 9})});
  const auto ids = view.replicas(LayerId(1), ExpertId(2));
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_EQ(ids[0], ShardId(4));
  EXPECT_EQ(ids[1], ShardId(9));
  EXPECT_EQ(view.epoch(), Epoch::Make(1, 2));
  EXPECT_EQ(view.FindShard(ShardId(9))->name, "shard9");
}

TEST(PlacementView, AReplicaOnAnUnknownShardIsLeftOut) {
  const PlacementView view(Epoch(), 1, 1, {Shard(1)}, {Entry(0, 0, {2})});
  EXPECT_TRUE(view.replicas(LayerId(0), ExpertId(0)).empty());
}

TEST(PlacementView, ALayerIsCoveredWhenEveryExpertHasAReplica) {
  const PlacementView view(Epoch(), 2, 2, {Shard(1)}, {Entry(0, 0, {1}), Entry(0, 1, {1}), Entry(1, 1, {1})});
  EXPECT_TRUE(view.covered(LayerId(0)));
  EXPECT_FALSE(view.covered(LayerId(1)));
  EXPECT_FALSE(view.covered(LayerId(2)));
}

TEST(PlacementView, EntriesOutsideTheModelAreIgnored) {
  const PlacementView view(Epoch(), 1, 1, {Shard(1)}, {Entry(7, 0, {1}), Entry(0, 7, {1})});
  EXPECT_TRUE(view.replicas(LayerId(7), ExpertId(0)).empty());
}

}  // namespace
}  // namespace consilium
