// Hosting states driven by commands.
#include <gtest/gtest.h>

#include "services/expert/core_fixture.h"

namespace consilium {
namespace {

using Kind = expert_event::Command::Kind;
using States = std::vector<HostState>;

struct Hosting : ::testing::Test {
  CoreFixture f{CoreFixture::Options(), false};
  ExpertKey a = CoreFixture::Key(1, 0), b = CoreFixture::Key(1, 1);
};

TEST_F(Hosting, ALoadWalksTheStatesAndFinishesItsOperation) {
  f.Command(Kind::kLoad, 5, {a, b});
  EXPECT_TRUE(f.ops.empty());
  f.FinishLoads();
  EXPECT_EQ(f.states[a], (States{HostState::kLoading, HostState::kVerified, HostState::kReady}));
  ASSERT_EQ(f.ops.size(), 1u);
  EXPECT_EQ(f.ops[0].op_id, 5u);
  EXPECT_TRUE(f.ops[0].ok);
  EXPECT_EQ(f.core->experts_ready(), 2u);
  EXPECT_EQ(f.core->loaded_bytes(), 200u);
}

TEST_F(Hosting, ARepeatedOperationIsAnsweredAgainAndNotDoneAgain) {
  f.Command(Kind::kLoad, 5, {a});
  f.Command(Kind::kLoad, 5, {a});
  EXPECT_EQ(f.loads.size(), 1u);
  f.FinishLoads();
  f.Command(Kind::kDrop, 6, {a});
  f.Command(Kind::kLoad, 5, {a});
  EXPECT_TRUE(f.loads.empty());
  EXPECT_EQ(f.core->state(a), HostState::kAbsent);
  ASSERT_EQ(f.ops.size(), 3u);
  EXPECT_EQ(f.ops[2].op_id, 5u);
}

TEST_F(Hosting, AFailedLoadSaysWhyAndLeavesNothing) {
  f.Command(Kind::kLoad, 5, {a});
  f.Do(expert_event::LoadDone{a, absl::DataLossError("checksum of file x"), 0});
  ASSERT_EQ(f.ops.size(), 1u);
  EXPECT_FALSE(f.ops[0].ok);
  EXPECT_NE(f.ops[0].text.find("layer 1 expert 0"), std::string::npos);
  EXPECT_NE(f.ops[0].text.find("checksum of file x"), std::string::npos);
  EXPECT_EQ(f.core->state(a), HostState::kAbsent);
  EXPECT_EQ(f.core->loaded_bytes(), 0u);
}

TEST_F(Hosting, AnExpertTheModelDoesNotHaveIsAnErrorOfTheOperation) {
  f.Command(Kind::kLoad, 5, {CoreFixture::Key(2, 99)});
  ASSERT_EQ(f.ops.size(), 1u);
  EXPECT_FALSE(f.ops[0].ok);
}

TEST_F(Hosting, ALoadBeyondTheCapacityIsRefused) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.capacity_bytes = 150;
  CoreFixture small(options, false);
  small.Command(Kind::kLoad, 5, {a, b});
  small.FinishLoads();
  ASSERT_EQ(small.ops.size(), 1u);
  EXPECT_FALSE(small.ops[0].ok);
  EXPECT_EQ(small.core->state(a), HostState::kReady);
  EXPECT_EQ(small.core->state(b), HostState::kAbsent);
}

TEST_F(Hosting, ADropWaitsForCallsInQueueAndJob) {
  f.Command(Kind::kLoad, 5, {a});
  f.FinishLoads();
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Call(1, 2, 1, {{2, {0}}});
  f.Command(Kind::kDrop, 6, {a});
  EXPECT_EQ(f.core->state(a), HostState::kDraining);
  f.FinishJob();
  EXPECT_EQ(f.drops, 0);
  f.FinishJob();
  EXPECT_EQ(f.drops, 1);
  EXPECT_EQ(f.core->state(a), HostState::kAbsent);
  EXPECT_EQ(f.answers.size(), 2u);
  EXPECT_EQ(f.ops.back().op_id, 6u);
}

TEST_F(Hosting, ADropWaitsAlsoForCallsOfAClosedStreamInTheJob) {
  f.Command(Kind::kLoad, 5, {a});
  f.FinishLoads();
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Do(expert_event::ConnClosed{1});
  f.Command(Kind::kDrop, 6, {a});
  EXPECT_EQ(f.drops, 0);
  f.FinishJob();
  EXPECT_EQ(f.drops, 1);
}

TEST_F(Hosting, ALoadKeepsADrainingExpert) {
  f.Command(Kind::kLoad, 5, {a});
  f.FinishLoads();
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Command(Kind::kDrop, 6, {a});
  f.Command(Kind::kLoad, 7, {a});
  EXPECT_EQ(f.core->state(a), HostState::kReady);
  f.FinishJob();
  EXPECT_EQ(f.drops, 0);
  ASSERT_EQ(f.ops.size(), 3u);
  EXPECT_FALSE(f.ops[1].ok);  // the DROP
  EXPECT_TRUE(f.ops[2].ok);
}

TEST_F(Hosting, ADropOfALoadingExpertHappensWhenItIsLoaded) {
  f.Command(Kind::kLoad, 5, {a});
  f.Command(Kind::kDrop, 6, {a});
  f.FinishLoads();
  EXPECT_EQ(f.core->state(a), HostState::kAbsent);
  EXPECT_EQ(f.drops, 1);
  ASSERT_EQ(f.ops.size(), 2u);
  EXPECT_FALSE(f.ops[0].ok);  // the LOAD
  EXPECT_TRUE(f.ops[1].ok);
}

TEST_F(Hosting, ADrainedExpertStaysLoadedUntilItsDrop) {
  f.Command(Kind::kLoad, 5, {a});
  f.FinishLoads();
  f.Command(Kind::kDrain, 6, {a});
  EXPECT_EQ(f.core->state(a), HostState::kDraining);
  EXPECT_TRUE(f.ops.back().ok);
  f.Command(Kind::kDrop, 7, {a});
  EXPECT_EQ(f.core->state(a), HostState::kAbsent);
}

TEST_F(Hosting, ADrainingShardTellsItsStreamsFinishesItsQueueAndRefusesNewCalls) {
  f.Command(Kind::kLoad, 5, {a});
  f.FinishLoads();
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Command(Kind::kDrain, 6, {});
  EXPECT_EQ(f.answers.back().kind, frame::Kind::kDrain);
  f.Call(1, 2, 1, {{1, {0}}});
  EXPECT_EQ(f.answers.back().code, frame::RejectCode::kDraining);
  EXPECT_EQ(f.ops.size(), 1u);
  f.FinishJob();
  EXPECT_TRUE(f.core->idle());
  EXPECT_EQ(f.ops.back().op_id, 6u);
  f.Open(2);
  EXPECT_EQ(f.answers.back().kind, frame::Kind::kDrain);
}

}  // namespace
}  // namespace consilium
