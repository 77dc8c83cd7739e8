#include "services/controller/controller_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/controller/testing_world.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// 16 experts (two layers of 8, 100 bytes each); every check of World holds at the end.
class Controller : public ::testing::Test {
 protected:
  void TearDown() override {
    ASSERT_NE(world, nullptr);
    EXPECT_THAT(world->violations(), IsEmpty());
  }
  World& Make(ControllerOptions options) {
    world = std::make_unique<World>(options);
    return *world;
  }
  // Three shards, one router, one gateway, all settled.
  World& Three(ControllerOptions options = {.expected_shards = 3}) {
    Make(options);
    for (const char* name : {"a", "b", "c"}) world->AddShard(name);
    world->AddRouter("r");
    world->AddGateway("g");
    world->Run(1000);
    return *world;
  }
  uint32_t Loads() {
    uint32_t sum = 0;
    for (auto& [name, shard] : world->shards()) sum += shard.loads;
    return sum;
  }
  bool NoteSays(const std::string& text) {
    for (const std::string& note : world->notes()) {
      if (note.find(text) != std::string::npos) return true;
    }
    return false;
  }
  std::unique_ptr<World> world;
};

TEST_F(Controller, SpreadsTheExpertsOfTheModelOverTheShards) {
  World& w = Three();
  EXPECT_TRUE(w.core().covered());
  EXPECT_EQ(w.Hosted("a") + w.Hosted("b") + w.Hosted("c"), 16u);
  for (const char* name : {"a", "b", "c"}) EXPECT_GE(w.Hosted(name), 5u) << name;
  EXPECT_TRUE(w.router("r").view->covered(LayerId{1}));
  EXPECT_TRUE(w.router("r").view->covered(LayerId{2}));
}

TEST_F(Controller, HostsEveryExpertOnAsManyShardsAsReplicasAreWanted) {
  World& w = Three({.replicas = 2, .expected_shards = 3});
  for (uint16_t e = 0; e < 8; ++e)
    EXPECT_EQ(w.router("r").view->replicas(LayerId{1}, ExpertId{e}).size(), 2u);
}

TEST_F(Controller, HasAsManyReplicasAsShardsWhenMoreAreWanted) {
  World& w = Make({.replicas = 5, .expected_shards = 2});
  w.AddShard("a");
  w.AddShard("b");
  w.Run(1000);
  EXPECT_EQ(w.Hosted("a"), 16u);
  EXPECT_EQ(w.Hosted("b"), 16u);
}

TEST_F(Controller, PlansAtOnceWhenTheExpectedShardsAreThere) {
  World& w = Make({.expected_shards = 2, .settle_ms = 60000});
  w.AddShard("a");
  w.Run(500);
  EXPECT_FALSE(w.core().settled());
  w.AddShard("b");
  w.Run(100);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, WaitsNoLongerThanTheSettleTimeForShardsThatDoNotCome) {
  World& w = Make({.expected_shards = 5, .settle_ms = 2000});
  w.AddShard("a");
  w.Run(1900);
  EXPECT_EQ(w.Hosted("a"), 0u);
  w.Run(300);
  EXPECT_EQ(w.Hosted("a"), 16u);
}

TEST_F(Controller, WaitsForAQuietMomentAfterTheLastJoin) {
  World& w = Make({.settle_ms = 400, .quiet_ms = 300});
  w.AddShard("a");
  w.Run(350);
  w.AddShard("b");
  w.Run(200);
  EXPECT_FALSE(w.core().settled());
  w.Run(200);
  EXPECT_TRUE(w.core().covered());
  EXPECT_EQ(w.shard("a").loads, 8u) << "planned once, with both";
}

TEST_F(Controller, PublishesNothingWithoutShards) {
  World& w = Make({.settle_ms = 100});
  w.AddRouter("r");
  w.AddGateway("g");
  w.Run(5000);
  EXPECT_EQ(w.router("r").view, nullptr);
  EXPECT_EQ(w.gateway("g").updates, 0u);
}

TEST_F(Controller, GatewaysAreToldTheWorkersAndWhetherAllExpertsAreCovered) {
  World& w = Three();
  const control::ClusterView& view = w.gateway("g").view;
  EXPECT_TRUE(view.covered);
  ASSERT_EQ(view.workers.size(), 1u);
  EXPECT_EQ(view.workers[0].name, "r");
  EXPECT_EQ(view.workers[0].address, w.router("r").who.address);
  EXPECT_TRUE(view.workers[0].ready);
  w.KillRouter("r");
  w.KillShard("a");
  w.Run(100);
  EXPECT_TRUE(w.gateway("g").view.workers.empty());
  EXPECT_FALSE(w.gateway("g").view.covered);
}

TEST_F(Controller, ALostShardLeavesTheViewAtOnceAndGetsItsExpertsBackWhenItReturnsInTime) {
  World& w = Three();
  const uint32_t others = w.Hosted("b") + w.Hosted("c"), held = w.Hosted("a");
  w.KillShard("a");
  w.Run(50);
  EXPECT_EQ(w.core().stats().uncovered, held);
  EXPECT_EQ(w.router("r").view->shards().size(), 2u);
  w.Run(2000);
  w.AddShard("a");
  w.Run(200);
  EXPECT_TRUE(w.core().covered());
  EXPECT_EQ(w.Hosted("a"), held);
  EXPECT_EQ(w.Hosted("b") + w.Hosted("c"), others) << "nothing else moved";
}

TEST_F(Controller, ARestartedShardGetsTheVeryExpertsItHadWhateverTheLoadsAreNow) {
  World& w = Three();
  const auto before = w.shard("a").hosted;
  for (uint16_t e = 0; e < 8; ++e) w.router("r").loads.push_back({LayerId{1}, ExpertId{e}, 100.0 * e * e});
  w.Run(3000);
  w.RestartShard("a");
  w.Run(200);
  EXPECT_EQ(w.shard("a").hosted, before);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, ARestartedShardComesBackUnderANewId) {
  World& w = Three();
  const uint32_t before = w.shard("a").id;
  w.RestartShard("a");
  w.Run(200);
  EXPECT_NE(w.shard("a").id, before);
  EXPECT_EQ(w.router("r").view->FindShard(ShardId{before}), nullptr);
  EXPECT_EQ(w.router("r").view->FindShard(ShardId{w.shard("a").id})->address, w.shard("a").who.address);
}

TEST_F(Controller, AShardThatOnlyLostItsStreamKeepsItsIdAndItsExperts) {
  World& w = Three();
  const uint32_t id = w.shard("a").id, loads = Loads();
  w.CutShard("a");
  w.Run(200);
  EXPECT_EQ(w.shard("a").id, id);
  EXPECT_EQ(Loads(), loads);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, AfterTheGraceTheSurvivorsTakeTheExperts) {
  World& w = Three({.expected_shards = 3, .rehost_grace_ms = 1000});
  w.KillShard("a");
  w.Run(900);
  EXPECT_FALSE(w.core().covered());
  w.Run(300);
  EXPECT_TRUE(w.core().covered());
  EXPECT_EQ(w.Hosted("b") + w.Hosted("c"), 16u);
}

TEST_F(Controller, WithTwoReplicasTheLossOfOneShardLeavesAllExpertsCovered) {
  World& w = Three({.replicas = 2, .expected_shards = 3});
  w.KillShard("b");
  w.Run(100);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, AShardThatMissesItsLeaseIsGone) {
  World& w = Three({.lease_ms = 900, .expected_shards = 3, .rehost_grace_ms = 500});
  w.shard("a").silent = true;
  w.Run(800);
  EXPECT_EQ(w.core().stats().shards, 3u);
  w.Run(1500);
  EXPECT_EQ(w.core().stats().shards, 2u);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, AJoiningShardTakesItsShareAndNoExpertIsEverUncovered) {
  World& w = Three();
  w.AddShard("d");
  for (int i = 0; i < 500; ++i) {
    w.Run(1);
    EXPECT_EQ(w.core().stats().uncovered, 0u);
  }
  EXPECT_EQ(w.Hosted("d"), 4u);
  EXPECT_EQ(w.Hosted("a") + w.Hosted("b") + w.Hosted("c"), 12u) << "moved copies were dropped";
}

TEST_F(Controller, AMovedCopyIsDroppedOnlyWhenAllRoutersAckedTheNewEpoch) {
  World& w = Three({.expected_shards = 3, .ack_timeout_ms = 3000});
  w.AddRouter("slow").acks = false;
  w.Run(100);
  w.AddShard("d");
  w.Run(2500);
  EXPECT_EQ(w.Hosted("d"), 4u);
  EXPECT_EQ(w.Hosted("a") + w.Hosted("b") + w.Hosted("c"), 16u) << "one router may still use them";
  w.Run(2000);
  EXPECT_EQ(w.Hosted("a") + w.Hosted("b") + w.Hosted("c"), 12u) << "the ack time is over";
}

TEST_F(Controller, RoutersGetASnapshotFirstAndDeltasThen) {
  World& w = Three();
  w.RestartShard("a");
  w.Run(300);
  EXPECT_EQ(w.router("r").snapshots, 1u);
  EXPECT_GE(w.router("r").deltas, 2u);
}

TEST_F(Controller, ARestartedControllerLeavesExpertsWhereTheyAreAndNeverShowsLess) {
  World& w = Three();
  const Epoch before = w.core().epoch();
  const uint32_t loads = Loads(), id = w.shard("a").id;
  w.KillController();
  w.Run(3000);
  EXPECT_TRUE(w.router("r").view->covered(LayerId{1})) << "kept while the controller is away";
  w.StartController();
  for (int i = 0; i < 4000; ++i) {
    w.Run(1);
    ASSERT_TRUE(w.router("r").view->covered(LayerId{1}) && w.router("r").view->covered(LayerId{2}));
    ASSERT_TRUE(w.gateway("g").view.covered);
    ASSERT_EQ(w.gateway("g").view.workers.size(), 1u);
  }
  EXPECT_GT(w.core().epoch(), before);
  EXPECT_GT(w.core().epoch().term(), before.term());
  EXPECT_EQ(w.router("r").view->epoch(), w.core().epoch());
  EXPECT_EQ(Loads(), loads);
  EXPECT_EQ(w.shard("a").id, id);
}

TEST_F(Controller, AMemberKnownFromBeforeIsWaitedForAfterARestart) {
  World& w = Three({.settle_ms = 500, .rehost_grace_ms = 4000});
  w.Run(1000);
  const uint32_t loads = Loads();
  w.KillController();
  w.shard("a").silent = true;
  w.StartController();
  w.Run(3000);
  EXPECT_FALSE(w.core().settled());
  w.shard("a").silent = false;
  w.Run(1000);
  EXPECT_TRUE(w.core().covered());
  EXPECT_EQ(Loads(), loads);
}

TEST_F(Controller, ALostStateDirectoryIsMadeGoodByTheRoutersEpoch) {
  World& w = Three();
  w.KillController();
  w.StartController();
  w.Run(4000);
  const Epoch before = w.router("r").view->epoch();
  ASSERT_EQ(before.term(), 2u);
  w.keep_state = false;
  w.KillController();
  w.StartController();
  w.Run(4000);
  EXPECT_EQ(w.core().epoch().term(), 3u);
  EXPECT_EQ(w.router("r").view->epoch(), w.core().epoch());
}

TEST_F(Controller, AShardWithAnotherModelIsRefusedWithBothNames) {
  World& w = Three();
  World::Shard& other = w.AddShard("x");
  other.who.manifest = std::string(32, 'z');
  other.who.model_id = "other";
  w.Run(100);
  EXPECT_THAT(other.refused, HasSubstr("shard x has model other (manifest 7a7a7a7a7a7a)"));
  EXPECT_THAT(other.refused, HasSubstr("this cluster serves tiny (manifest 6d6d6d6d6d6d)"));
  EXPECT_EQ(w.core().stats().shards, 3u);
  EXPECT_EQ(w.core().stats().refused, 1u);
}

TEST_F(Controller, AnotherClassOrFingerprintIsRefused) {
  World& w = Three();
  World::Shard& f32 = w.AddShard("x");
  f32.who.class_name = "f32";
  World::Shard& bits = w.AddShard("y");
  bits.who.fingerprint = 8;
  World::Router& router = w.AddRouter("z");
  router.who.fingerprint = 9;
  w.Run(100);
  EXPECT_THAT(f32.refused, HasSubstr("class f32, this cluster in hash"));
  EXPECT_THAT(bits.refused, HasSubstr("fingerprint 8 of class hash, this cluster 7"));
  EXPECT_THAT(router.refused, HasSubstr("fingerprint 9"));
}

TEST_F(Controller, AReportThatComesAfterTheRefusalIsNotAnotherAttachment) {
  World& w = Three();
  std::vector<ControllerAction> out;
  control::RouterReport report{.who = w.router("r").who};
  report.who.name = "x";
  report.who.fingerprint = 8;
  w.core().Handle(w.now(), controller_event::Router{1000, report}, &out);
  out.clear();
  w.core().Handle(w.now(), controller_event::Router{1000, report}, &out);
  EXPECT_TRUE(out.empty());
  EXPECT_EQ(w.core().stats().refused, 1u);
}

TEST_F(Controller, TheNewerProcessOfANameTakesItAndTheOlderIsRefused) {
  World& w = Three();
  const control::MemberIdentity old = w.shard("a").who;
  const PeerId old_peer = w.shard("a").peer;
  std::vector<ControllerAction> out;
  control::ShardReport report{.who = old, .layers = w.layers, .full = true};
  report.who.incarnation = 999;
  w.core().Handle(w.now(), controller_event::Shard{1000, report}, &out);
  const auto* told = std::get_if<controller_action::ToShard>(&out.front());
  ASSERT_NE(told, nullptr);
  EXPECT_EQ(told->peer, old_peer);
  EXPECT_THAT(told->command.refused, HasSubstr("taken by a newer process"));
  out.clear();
  report.who = old;
  w.core().Handle(w.now(), controller_event::Shard{1001, report}, &out);
  bool refused = false;
  for (const auto& action : out) {
    const auto* shard = std::get_if<controller_action::ToShard>(&action);
    refused |= shard != nullptr && shard->peer == 1001 && !shard->command.refused.empty();
  }
  EXPECT_TRUE(refused);
}

TEST_F(Controller, WhenAllMembersAreGoneTheNextMayBringAnotherModel) {
  World& w = Three({.expected_shards = 3, .settle_ms = 200, .rehost_grace_ms = 500});
  for (const char* name : {"a", "b", "c"}) w.KillShard(name);
  w.KillRouter("r");
  w.Run(1000);
  w.manifest = std::string(32, 'z');
  w.layers = {{LayerId{0}, 4, 10}};
  w.AddShard("n");
  w.Run(1000);
  EXPECT_EQ(w.shard("n").refused, "");
  EXPECT_EQ(w.Hosted("n"), 4u);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, AFailedLoadIsTriedElsewhereAndNamedInTheLog) {
  World& w = Make({.expected_shards = 2});
  w.AddShard("a").fail_loads = 1;
  w.AddShard("b");
  w.Run(300);
  EXPECT_TRUE(w.core().covered());
  EXPECT_EQ(w.Hosted("b"), 16u);
  EXPECT_TRUE(NoteSays("shard a failed to load 8 experts"));
  EXPECT_TRUE(NoteSays("checksum differs"));
  w.Run(3000);
  EXPECT_EQ(w.Hosted("a"), 8u) << "tried again after a while";
}

TEST_F(Controller, ALoadThatFailsOnTheOnlyShardIsTriedAgainWithALongerWaitEachTime) {
  World& w = Make({.expected_shards = 1, .retry_ms = 100});
  w.AddShard("a").fail_loads = 3;
  w.Run(500);
  EXPECT_FALSE(w.core().covered());
  w.Run(600);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, WhatDoesNotFitIsSaidAndTheRestIsServed) {
  World& w = Make({.expected_shards = 2});
  w.AddShard("a", 500);
  w.AddShard("b", 500);
  w.Run(500);
  EXPECT_EQ(w.core().stats().uncovered, 6u);
  EXPECT_EQ(w.core().Uncovered().size(), 6u);
  EXPECT_TRUE(NoteSays("6 of 16 found no shard"));
  w.AddShard("c", 600);
  w.Run(500);
  EXPECT_TRUE(w.core().covered());
}

TEST_F(Controller, AnOpWithoutProgressIsSentAgainUnderTheSameId) {
  World& w = Make({.expected_shards = 1, .op_timeout_ms = 1000});
  std::vector<ControllerAction> out;
  w.core().Handle(w.now(),
                  controller_event::Shard{1,
                                          {.who = {"s", 1, "h:1", "", "m", std::string(32, 'm'), "f32", 1},
                                           .layers = w.layers,
                                           .full = true}},
                  &out);
  const auto loads = [](const std::vector<ControllerAction>& actions) {
    std::vector<uint64_t> ids;
    for (const auto& action : actions) {
      const auto* shard = std::get_if<controller_action::ToShard>(&action);
      if (shard != nullptr && shard->command.kind == control::CommandKind::kLoad)
        ids.push_back(shard->command.op_id);
    }
    return ids;
  };
  const std::vector<uint64_t> first = loads(out);
  ASSERT_EQ(first.size(), 1u);
  out.clear();
  w.core().Handle(w.now() + 999000, controller_event::Tick{}, &out);
  EXPECT_THAT(loads(out), IsEmpty());
  w.core().Handle(w.now() + 1000000, controller_event::Tick{}, &out);
  EXPECT_EQ(loads(out), first);
}

TEST_F(Controller, MembersListsRolesAddressesAndStates) {
  World& w = Three();
  w.KillShard("b");
  w.Run(50);
  std::vector<std::string> lines;
  for (const ControllerMember& m : w.core().Members()) lines.push_back(m.role + " " + m.name + " " + m.state);
  EXPECT_THAT(lines, ElementsAre("expert a ready", "expert b gone", "expert c ready", "attention r ready",
                                 "gateway g attached"));
}

TEST_F(Controller, ReportsOfUnknownExpertsAndResultsAreIgnored) {
  World& w = Three();
  std::vector<ControllerAction> out;
  control::ShardReport report{.who = w.shard("a").who,
                              .experts = {{LayerId{77}, ExpertId{3}, control::HostedState::kReady},
                                          {LayerId{1}, ExpertId{900}, control::HostedState::kReady}},
                              .results = {{12345, true, ""}}};
  w.core().Handle(w.now(), controller_event::Shard{w.shard("a").peer, report}, &out);
  EXPECT_TRUE(w.core().covered());
}

}  // namespace
}  // namespace consilium
