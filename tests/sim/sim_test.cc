// The cluster under simulation. Environment: CONSILIUM_SIM_SEEDS=n runs seeds 0..n-1 (default 200);
// CONSILIUM_SIM_SEED=s runs one seed and prints every event.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <optional>

#include "common/log/log.h"
#include "common/testing/tiny_checkpoint.h"
#include "tests/sim/sim_world.h"

namespace consilium::sim {
namespace {

std::optional<uint64_t> Env(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == 0) return std::nullopt;
  return std::strtoull(text, nullptr, 10);
}

void RunSeeds(SimModel* model, uint64_t seeds, const char* test) {
  SimOptions options;
  uint64_t first = 0, last = seeds;
  if (const auto one = Env("CONSILIUM_SIM_SEED")) {
    first = *one;
    last = first + 1;
    options.print = true;
  }
  SimResult sum;
  for (uint64_t seed = first; seed < last; ++seed) {
    const SimResult r = RunSeed(seed, model, options);
    for (const std::string& v : r.violations) {
      ADD_FAILURE() << "seed " << seed << ": " << v << "\nreplay: CONSILIUM_SIM_SEED=" << seed
                    << " build/bin/sim_test --gtest_filter=" << test;
    }
    if (!r.violations.empty()) return;
    sum.steps += r.steps;
    sum.tokens += r.tokens;
    sum.requests += r.requests;
    sum.failed += r.failed;
    sum.resumed += r.resumed;
    sum.faults += r.faults;
    sum.preemptions += r.preemptions;
    sum.resends += r.resends;
    sum.prefix_hits += r.prefix_hits;
  }
  std::cout << last - first << " seeds: " << sum.requests << " requests, " << sum.tokens << " tokens, "
            << sum.failed << " clean errors, " << sum.resumed << " resumed, " << sum.faults << " faults, "
            << sum.preemptions << " preemptions, " << sum.resends << " resent calls, " << sum.prefix_hits
            << " prefix tokens, " << sum.steps << " events\n";
  // The faults must have been felt, or this proves nothing.
  if (last - first >= 100) {
    EXPECT_GT(sum.resumed, 0u);
    EXPECT_GT(sum.resends, 0u);
    EXPECT_GT(sum.preemptions, 0u);
    EXPECT_GT(sum.prefix_hits, 0u);
    EXPECT_LT(sum.failed * 4, sum.requests);
  }
}

TEST(Sim, EveryRequestEndsOnceWithTheTokensOfAnUndisturbedRun) {
  auto model = NewHashModel();
  RunSeeds(model.get(), Env("CONSILIUM_SIM_SEEDS").value_or(200),
           "Sim.EveryRequestEndsOnceWithTheTokensOfAnUndisturbedRun");
}

TEST(Sim, TheSameWithRecurrentStates) {
  auto model = NewHashModel(/*recurrent=*/true);
  RunSeeds(model.get(), Env("CONSILIUM_SIM_SEEDS").value_or(200), "Sim.TheSameWithRecurrentStates");
}

void RunTinySeeds(TinyConfig::Family family, const char* test) {
  log::Configure("sim", log::Level::kWarn, log::Format::kText);
  TinyConfig config;
  config.family = family;
  config.vocab = 280;
  config.hidden = 16;
  TemporaryFolder folder;
  auto model = NewTinyModel(config, folder.path());
  RunSeeds(model.get(), std::max<uint64_t>(20, Env("CONSILIUM_SIM_SEEDS").value_or(200) / 10), test);
}

TEST(Sim, TheSameWithATinyRealMoe) {
  RunTinySeeds(TinyConfig::Family::kDeepseekV3, "Sim.TheSameWithATinyRealMoe");
}

TEST(Sim, TheSameWithShortConvolutions) {
  RunTinySeeds(TinyConfig::Family::kLfm2Moe, "Sim.TheSameWithShortConvolutions");
}

TEST(Sim, TheSameWithDeltaNets) { RunTinySeeds(TinyConfig::Family::kQwen3Next, "Sim.TheSameWithDeltaNets"); }

TEST(Sim, TheSameSeedTwiceGivesTheSameTrace) {
  auto model = NewHashModel();
  for (uint64_t seed = 1000; seed < 1005; ++seed) {
    const SimResult a = RunSeed(seed, model.get(), {}), b = RunSeed(seed, model.get(), {});
    EXPECT_EQ(a.trace, b.trace) << "seed " << seed;
    EXPECT_EQ(a.steps, b.steps);
    EXPECT_NE(a.trace, RunSeed(seed + 1, model.get(), {}).trace);
  }
}

TEST(Sim, WithoutFaultsNothingFails) {
  auto model = NewHashModel();
  SimOptions calm;
  calm.faults = false;
  for (uint64_t seed = 2000; seed < 2010; ++seed) {
    const SimResult r = RunSeed(seed, model.get(), calm);
    EXPECT_TRUE(r.violations.empty()) << "seed " << seed << ": " << r.violations[0];
    EXPECT_EQ(r.failed, 0u);
  }
}

}  // namespace
}  // namespace consilium::sim
