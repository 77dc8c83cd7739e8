#include "common/net/placement_fold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/status.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr LayerId kLayer{1};

control::PlacementUpdate Snapshot(uint64_t epoch) {
  control::PlacementUpdate update;
  update.epoch = Epoch{epoch};
  update.layers = 2;
  update.experts = 2;
  update.shards = {{ShardId{7}, "a", "h:1", 11}, {ShardId{8}, "b", "h:2", 12}};
  update.replicas = {{kLayer, ExpertId{0}, {ShardId{7}}}, {kLayer, ExpertId{1}, {ShardId{7}, ShardId{8}}}};
  return update;
}

control::PlacementUpdate Delta(uint64_t base, uint64_t epoch) {
  control::PlacementUpdate update = Snapshot(epoch);
  update.base_epoch = Epoch{base};
  update.shards = {{ShardId{9}, "c", "h:3", 13}};
  update.gone_shards = {ShardId{7}};
  update.replicas = {{kLayer, ExpertId{0}, {ShardId{9}}}, {kLayer, ExpertId{1}, {ShardId{8}}}};
  return update;
}

TEST(PlacementFold, ASnapshotIsTheView) {
  PlacementFold fold;
  const auto view = fold.Apply(Snapshot(5)).value();
  EXPECT_EQ(view->epoch(), Epoch{5});
  EXPECT_THAT(view->replicas(kLayer, ExpertId{1}), ElementsAre(ShardId{7}, ShardId{8}));
  EXPECT_EQ(view->FindShard(ShardId{8})->address, "h:2");
}

TEST(PlacementFold, ADeltaChangesWhatItNamesAndLeavesOldViewsAlone) {
  PlacementFold fold;
  const auto old = fold.Apply(Snapshot(5)).value();
  const auto view = fold.Apply(Delta(5, 6)).value();
  EXPECT_THAT(view->replicas(kLayer, ExpertId{0}), ElementsAre(ShardId{9}));
  EXPECT_THAT(view->replicas(kLayer, ExpertId{1}), ElementsAre(ShardId{8}));
  EXPECT_EQ(view->FindShard(ShardId{7}), nullptr);
  EXPECT_THAT(old->replicas(kLayer, ExpertId{0}), ElementsAre(ShardId{7}));
}

TEST(PlacementFold, ADeltaFromAnotherEpochIsRefusedAndChangesNothing) {
  PlacementFold fold;
  ASSERT_TRUE(fold.Apply(Snapshot(5)).ok());
  const auto result = fold.Apply(Delta(4, 6));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(result.status()), HasSubstr("starts from epoch 4, this view is at 5"));
  EXPECT_EQ(fold.epoch(), Epoch{5});
  EXPECT_NE(fold.Apply(Delta(5, 6)).value(), nullptr);
}

TEST(PlacementFold, OnlyNewerEpochsAreTaken) {
  PlacementFold fold;
  ASSERT_TRUE(fold.Apply(Snapshot(5)).ok());
  EXPECT_EQ(fold.Apply(Snapshot(5)).value(), nullptr);
  EXPECT_EQ(fold.Apply(Snapshot(4)).value(), nullptr);
  EXPECT_EQ(fold.epoch(), Epoch{5});
}

TEST(PlacementFold, ASnapshotForgetsWhatItDoesNotName) {
  PlacementFold fold;
  ASSERT_TRUE(fold.Apply(Snapshot(5)).ok());
  auto next = Snapshot(6);
  next.shards.pop_back();
  next.replicas.pop_back();
  const auto view = fold.Apply(next).value();
  EXPECT_THAT(view->replicas(kLayer, ExpertId{1}), IsEmpty());
  EXPECT_FALSE(view->covered(kLayer));
}

TEST(PlacementFold, ExpertsBeyondTheBoundsOfTheUpdateAreLeftOut) {
  PlacementFold fold;
  auto update = Snapshot(5);
  update.replicas.push_back({LayerId{9}, ExpertId{9}, {ShardId{7}}});
  EXPECT_THAT(fold.Apply(update).value()->replicas(LayerId{9}, ExpertId{9}), IsEmpty());
}

}  // namespace
}  // namespace consilium
