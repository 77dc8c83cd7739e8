// Random histories of the whole control plane: joins, deaths, restarts, cut streams, failing loads,
// controller restarts with and without its state directory. World checks every publication and DROP; at the
// end, left alone, all is covered.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/controller/testing_world.h"

namespace consilium {
namespace {

using ::testing::IsEmpty;

class Chaos {
 public:
  explicit Chaos(uint64_t seed) : random_(seed), world_(Options(seed), seed) {
    world_.delay_ms = 1 + static_cast<uint32_t>(random_() % 20);
    world_.load_ms = 1 + static_cast<uint32_t>(random_() % 300);
    world_.AddRouter("r0");
    world_.AddGateway("g0");
    for (size_t i = 0; i < 1 + random_() % 4; ++i) world_.AddShard("s" + std::to_string(i));
  }

  void Step() {
    const std::string shard = "s" + std::to_string(random_() % 5),
                      router = "r" + std::to_string(random_() % 3);
    const bool there = world_.shards().contains(shard);
    const bool alive = there && world_.shard(shard).alive;
    switch (random_() % 10) {
      case 0:
      case 1:
        if (!alive) world_.AddShard(shard);
        break;
      case 2:
        if (alive) world_.KillShard(shard);
        break;
      case 3:
        if (alive) world_.RestartShard(shard);
        break;
      case 4:
        if (alive) world_.CutShard(shard);
        break;
      case 5:
        if (alive) world_.shard(shard).fail_loads = static_cast<uint32_t>(random_() % 3);
        break;
      case 6:
        if (world_.routers().contains(router)) world_.KillRouter(router);
        world_.AddRouter(router);
        break;
      case 7:
        if (world_.controller_up()) world_.KillController();
        break;
      default:
        if (!world_.controller_up()) {
          world_.keep_state = random_() % 4 != 0;
          world_.StartController();
        }
    }
    world_.Run(static_cast<uint32_t>(random_() % 1500));
  }

  // Nothing more happens: one shard at least, the controller up.
  void Settle() {
    world_.keep_state = true;
    if (!world_.controller_up()) world_.StartController();
    if (!world_.shards().contains("s0") || !world_.shard("s0").alive) world_.AddShard("s0");
    world_.Run(60000);
  }

  World& world() { return world_; }

 private:
  static ControllerOptions Options(uint64_t seed) {
    ControllerOptions options;
    options.replicas = 1 + static_cast<uint32_t>(seed % 3);
    options.lease_ms = 900;
    options.settle_ms = 1000;
    options.rehost_grace_ms = 1500;
    options.op_timeout_ms = 2000;
    options.ack_timeout_ms = 10000;
    options.retry_ms = 200;
    return options;
  }

  std::mt19937_64 random_;
  World world_;
};

TEST(ControllerSim, EndsCoveredAndNeverPublishesWhatIsNotReadyOverRandomHistories) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Chaos chaos(seed);
    for (int i = 0; i < 40; ++i) chaos.Step();
    chaos.Settle();
    World& w = chaos.world();
    ASSERT_THAT(w.violations(), IsEmpty());
    ASSERT_TRUE(w.core().covered());
    EXPECT_EQ(w.core().stats().ops_outstanding, 0u);
    uint32_t alive = 0, hosted = 0;
    for (auto& [name, shard] : w.shards()) {
      alive += shard.alive ? 1 : 0;
      hosted += shard.alive ? w.Hosted(name) : 0;
    }
    const uint32_t copies = std::min<uint32_t>(1 + static_cast<uint32_t>(seed % 3), alive);
    EXPECT_EQ(hosted, copies * w.experts()) << "no copy too many or too few";
    for (auto& [name, router] : w.routers()) {
      if (!router.alive) continue;
      ASSERT_NE(router.view, nullptr) << name;
      EXPECT_EQ(router.view->epoch(), w.core().epoch()) << name;
      EXPECT_EQ(router.view->shards().size(), alive) << name;
    }
    EXPECT_TRUE(w.gateway("g0").view.covered);
  }
}

TEST(ControllerSim, TheSameSeedGivesTheSameHistory) {
  const auto run = [](uint64_t seed) {
    Chaos chaos(seed);
    for (int i = 0; i < 40; ++i) chaos.Step();
    chaos.Settle();
    return chaos.world().notes();
  };
  EXPECT_EQ(run(17), run(17));
}

}  // namespace
}  // namespace consilium
