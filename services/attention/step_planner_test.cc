#include "services/attention/step_planner.h"

#include <gtest/gtest.h>

#include <random>

#include "common/base/limits.h"

namespace consilium {
namespace {

SchedulerSequence Prompt(uint32_t tokens, uint32_t computed = 0, uint32_t blocks = 0) {
  SchedulerSequence s;
  s.tokens = tokens;
  s.computed = computed;
  s.blocks = s.sole_blocks = blocks;
  return s;
}
SchedulerSequence Decode(uint32_t tokens) {
  SchedulerSequence s = Prompt(tokens, tokens - 1, (tokens + kKvBlockTokens - 1) / kKvBlockTokens);
  s.decode = true;
  return s;
}
StepPlan Plan(std::vector<SchedulerSequence> sequences, uint32_t available, StepLimits limits,
              uint32_t decode_flights = 0, uint32_t prompt_flights = 0) {
  SchedulerView view;
  view.sequences = std::move(sequences);
  view.available_blocks = available;
  view.decode_flights = decode_flights;
  view.prompt_flights = prompt_flights;
  StepPlan plan;
  PlanStep(view, limits, &plan);
  return plan;
}

TEST(StepPlanner, NothingToDoGivesNoFlight) { EXPECT_TRUE(Plan({}, 10, {2, 64, 16, 8}).flights.empty()); }

TEST(StepPlanner, WithOneFlightDecodeRowsAndPromptsShareItAndDecodeIsNotLeftOut) {
  const StepPlan plan = Plan({Prompt(100), Decode(20), Decode(30)}, 100, {1, 16, 64, 8});
  ASSERT_EQ(plan.flights.size(), 1u);
  EXPECT_FALSE(plan.flights[0].decode_only);
  EXPECT_EQ(plan.flights[0].rows, 16u);
  EXPECT_EQ(plan.flights[0].sequences.size(), 3u);
  EXPECT_EQ(plan.flights[0].sequences[0].rows, 14u);
}

TEST(StepPlanner, WithTwoFlightsDecodeRowsFlyApartFromPrompts) {
  const StepPlan plan = Plan({Prompt(100), Decode(20)}, 100, {2, 64, 16, 8});
  ASSERT_EQ(plan.flights.size(), 2u);
  EXPECT_NE(plan.flights[0].decode_only, plan.flights[1].decode_only);
  for (const PlannedFlight& f : plan.flights) EXPECT_EQ(f.rows, f.decode_only ? 1u : 16u);
}

TEST(StepPlanner, DecodeRowsWaitForTheDecodeFlightInTheAir) {
  EXPECT_TRUE(Plan({Decode(20)}, 100, {2, 64, 16, 8}, 1, 0).flights.empty());
}

TEST(StepPlanner, DecodeSplitsOnlyWhenTheLinkTakesTheTime) {
  SchedulerView view;
  view.link_us = 1000;
  view.compute_us = 100;
  EXPECT_EQ(DecodeFlights(view, {4, 64, 16, 8}, 64), 4u);
  EXPECT_EQ(DecodeFlights(view, {4, 64, 16, 8}, 7), 1u);
  view.compute_us = 1000;
  EXPECT_EQ(DecodeFlights(view, {4, 64, 16, 8}, 64), 1u);
}

TEST(StepPlanner, AnOlderSequenceTakesPagesFromTheYoungest) {
  const StepPlan plan = Plan({Decode(17), Decode(16), Decode(16)}, 0, {1, 8, 8, 8});
  EXPECT_TRUE(plan.preempt.empty()) << "nobody needs a page";
  SchedulerSequence old = Decode(17);
  old.blocks = old.sole_blocks = 1;  // the 17th token needs its second page
  const StepPlan second = Plan({old, Decode(16), Decode(16)}, 0, {1, 8, 8, 8});
  EXPECT_EQ(second.preempt, std::vector<uint32_t>{2});
  ASSERT_EQ(second.flights.size(), 1u);
  EXPECT_EQ(second.flights[0].rows, 2u);
}

TEST(StepPlanner, AYoungerSequenceGetsNoPageWhileAnOlderIsShort) {
  SchedulerSequence flying = Decode(64);
  flying.in_flight = true;
  const StepPlan plan = Plan({flying, Prompt(100), Prompt(5)}, 3, {2, 64, 64, 8}, 1, 0);
  EXPECT_TRUE(plan.flights.empty());
}

TEST(StepPlanner, ASequenceInFlightIsNeverPreempted) {
  SchedulerSequence flying = Decode(16);
  flying.in_flight = true;
  const StepPlan plan = Plan({Prompt(20), flying}, 0, {2, 64, 64, 8}, 1, 0);
  EXPECT_TRUE(plan.preempt.empty());
}

TEST(StepPlanner, EverySequenceOfAFlightTakesAState) {
  SchedulerView view;
  view.available_blocks = 100;
  view.has_states = true;
  view.sequences = {Decode(20), Decode(20), Prompt(5), Decode(20)};
  for (SchedulerSequence& s : view.sequences) s.sole_states = s.blocks > 0;
  const auto plan = [&](uint32_t available) {
    StepPlan p;
    view.available_states = available;
    PlanStep(view, {1, 64, 64, 8}, &p);
    return p;
  };
  EXPECT_EQ(plan(5).flights[0].sequences.size(), 4u) << "the prompt two: a hit may begin from one";
  const StepPlan tight = plan(1);
  EXPECT_EQ(tight.preempt, std::vector<uint32_t>{3}) << "the second takes the youngest's";
  EXPECT_EQ(tight.flights[0].sequences.size(), 2u);
  EXPECT_EQ(plan(4).flights[0].sequences.size(), 3u);
  EXPECT_TRUE(plan(4).preempt.empty()) << "nobody is younger";
}

// Random arrivals over a small arena: every sequence ends, pages and states never go below zero, and
// in-flight work is respected.
TEST(StepPlanner, EverySequenceEndsWhateverTheArena) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    auto pick = [&](uint32_t n) { return static_cast<uint32_t>(rng() % n); };
    const StepLimits limits{1 + pick(4), 1 + pick(20), pick(3) * 8, 2};
    const uint32_t arena = 6 + pick(10);
    const bool has_states = seed >= 100;
    const uint32_t slots = has_states ? kStateSlotsMin + pick(8) : 0;
    struct Seq {
      uint32_t prompt, tokens, wanted, computed = 0, blocks = 0, flight = 0;
      uint32_t states() const { return (computed > 0) + flight; }
    };
    std::vector<Seq> all;
    struct Flight {
      std::vector<std::pair<size_t, uint32_t>> rows;
      bool decode;
    };
    std::vector<Flight> air;
    uint32_t to_come = 30, steps = 0;
    auto used = [&] {
      uint32_t n = 0;
      for (const Seq& s : all) n += s.blocks;
      return n;
    };
    auto states = [&] {
      uint32_t n = 0;
      for (const Seq& s : all) n += has_states ? s.states() : 0;
      return n;
    };
    while ((to_come > 0 ||
            std::any_of(all.begin(), all.end(), [](const Seq& s) { return s.tokens < s.wanted; }))) {
      ASSERT_LT(++steps, 20000u) << "someone starves";
      if (to_come > 0 && pick(3) == 0) {
        const uint32_t prompt = 1 + pick(arena * kKvBlockTokens / 2);
        all.push_back({prompt, prompt, std::min(prompt + 1 + pick(40), arena * kKvBlockTokens)});
        --to_come;
      }
      SchedulerView view;
      std::vector<size_t> ix;
      for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].tokens >= all[i].wanted) continue;
        SchedulerSequence v = Prompt(all[i].tokens, all[i].computed, all[i].blocks);
        v.in_flight = all[i].flight > 0;
        v.sole_states = has_states ? all[i].states() : 0;
        v.decode = v.computed + 1 == v.tokens && v.tokens > all[i].prompt;
        view.sequences.push_back(v);
        ix.push_back(i);
      }
      view.available_blocks = arena - used();
      view.has_states = has_states;
      view.available_states = slots - states();
      for (const Flight& f : air) ++(f.decode ? view.decode_flights : view.prompt_flights);
      StepPlan plan;
      PlanStep(view, limits, &plan);
      for (uint32_t p : plan.preempt) {
        ASSERT_EQ(all[ix[p]].flight, 0u);
        all[ix[p]].computed = all[ix[p]].blocks = 0;
      }
      ASSERT_LE(air.size() + plan.flights.size(), limits.flights);
      for (const PlannedFlight& f : plan.flights) {
        ASSERT_LE(f.rows, limits.flight_rows_max);
        Flight flight{{}, f.decode_only};
        for (const PlannedSequence& p : f.sequences) {
          Seq& s = all[ix[p.index]];
          ASSERT_EQ(s.flight, 0u);
          ASSERT_GT(p.rows, 0u);
          s.flight = 1;
          s.blocks = std::max(s.blocks, (s.computed + p.rows + kKvBlockTokens - 1) / kKvBlockTokens);
          flight.rows.push_back({ix[p.index], p.rows});
        }
        air.push_back(flight);
      }
      ASSERT_LE(used(), arena);
      ASSERT_LE(states(), slots);
      if (air.empty()) {
        ASSERT_TRUE(to_come > 0 || plan.flights.size() + plan.preempt.size() > 0) << "stuck";
        continue;
      }
      const size_t landing = pick(static_cast<uint32_t>(air.size()));
      for (auto [i, rows] : air[landing].rows) {
        Seq& s = all[i];
        s.flight = 0;
        s.computed += rows;
        if (s.computed == s.tokens && ++s.tokens >= s.wanted) s.blocks = s.computed = 0;
      }
      air.erase(air.begin() + static_cast<ptrdiff_t>(landing));
    }
  }
}

}  // namespace
}  // namespace consilium
