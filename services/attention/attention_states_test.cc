// Recurrent states in the worker: whatever a request goes through, its tokens are those of one that had the
// worker to itself. The hash backend checks that a flight reads the state of its first row and writes
// another.
#include <gtest/gtest.h>

#include "services/attention/attention_lab_fixture.h"

namespace consilium {
namespace {

HashModel Recurrent(uint32_t slots = 64) {
  HashModel m;
  m.recurrent = true;
  m.state_slots = slots;
  return m;
}

AttentionConfig Snapshots(uint32_t tokens) {
  AttentionConfig c;
  c.state_snapshot_tokens = tokens;
  return c;
}

// A worker that computes every row anew, one at a time.
Outcome Plainly(SessionSubmit submit) {
  AttentionConfig config;
  config.flights = 1;
  config.prefill_chunk = 1;
  config.prefix_cache = false;
  return Alone(std::move(submit), config, Recurrent());
}

SessionSubmit Choices(uint64_t request, size_t prompt, uint32_t max_tokens, uint32_t n) {
  SessionSubmit s = Submit(request, prompt, max_tokens);
  s.n = n;
  return s;
}

TEST(AttentionStates, TokensDoNotDependOnChunksFlightsBatchOrCache) {
  std::map<uint64_t, Tokens> want;
  for (uint64_t r = 1; r <= 12; ++r) want[r] = Plainly(Submit(r, 5 + r * 7, 12)).tokens.at(0);
  ExpectTokensUnderEveryPlan(want, Recurrent(), 16);
}

TEST(AttentionStates, APrefixIsHitWhereAStateIsKept) {
  Lab lab(Snapshots(64), Recurrent());
  const auto send = [&](uint64_t request, size_t prompt) {
    SessionSubmit s = Submit(1, prompt, 5);  // the same tokens
    s.request = request;
    lab.Send(s);
    lab.Settle();
    EXPECT_EQ(lab.Of(request).tokens.at(0), Plainly(Submit(1, prompt, 5)).tokens.at(0)) << prompt;
    return lab.Of(request).cached;
  };
  EXPECT_EQ(send(1, 150), 0u);
  EXPECT_EQ(send(2, 150), 144u) << "the last full page before the last prompt token";
  EXPECT_EQ(send(3, 170), 144u);
  EXPECT_EQ(send(4, 143), 128u) << "a multiple of the snapshot's tokens";
  EXPECT_EQ(send(5, 127), 64u);
  EXPECT_EQ(send(6, 64), 0u) << "pages alone are no hit";
  EXPECT_EQ(send(7, 64), 48u);
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionStates, DecodingLeavesStatesToo) {
  Lab lab(Snapshots(64), Recurrent());
  lab.Send(Submit(1, 20, 120));
  lab.Settle();
  SessionSubmit next = Submit(1, 20, 5);
  next.request = 2;
  const Tokens& answer = lab.Of(1).tokens.at(0);
  next.prompt.insert(next.prompt.end(), answer.begin(), answer.end());
  lab.Send(next);
  lab.Settle();
  EXPECT_EQ(lab.Of(2).cached, 128u);
  next.request = 3;
  EXPECT_EQ(lab.Of(2).tokens, Plainly(next).tokens);
}

TEST(AttentionStates, ChoicesForkAfterThePromptAndEqualChoicesAlone) {
  for (size_t prompt : {1u, 15u, 16u, 17u, 33u, 70u}) {
    for (bool cache : {true, false}) {
      for (uint32_t slots : {2u, 3u, 5u, 64u}) {
        AttentionConfig config = Snapshots(32);
        config.prefix_cache = cache;
        const SessionSubmit s = Choices(7, prompt, 20, 3);
        Lab lab(config, Recurrent(slots));
        lab.Send(s);
        lab.Settle();
        const Outcome& o = lab.Of(7);
        ASSERT_EQ(o.finishes.size(), 3u) << prompt << ", " << slots << " states";
        EXPECT_EQ(o.tokens, Plainly(s).tokens) << prompt << ", " << slots << " states";
        EXPECT_NE(o.tokens.at(0), o.tokens.at(1));
        if (slots == 64) {
          EXPECT_EQ(lab.core.stats().prompt_tokens, prompt + 2 * (prompt - (prompt - 1) / 16 * 16))
              << "the others begin where the pages end";
        }
        EXPECT_EQ(lab.core.Leaks(), "");
      }
    }
  }
}

TEST(AttentionStates, AResumedChoiceGoesOnWithTheSameTokens) {
  const SessionSubmit s = Choices(7, 33, 40, 3);
  const Outcome all = Plainly(s);
  SessionSubmit resumed = s;
  for (uint32_t c = 0; c < 3; ++c)
    resumed.history.push_back({c, Tokens(all.tokens.at(c).begin(), all.tokens.at(c).begin() + 25)});
  const Outcome rest = Alone(resumed, Snapshots(16), Recurrent());
  for (uint32_t c = 0; c < 3; ++c)
    EXPECT_EQ(rest.tokens.at(c), Tokens(all.tokens.at(c).begin() + 25, all.tokens.at(c).end()));
}

TEST(AttentionStates, PromptLogprobsAreThoseOfAnUndisturbedRun) {
  SessionSubmit s = Choices(3, 70, 4, 2);
  s.prompt_logprobs = true;
  Lab lab(Snapshots(32), Recurrent(4));
  lab.prompt_size[3] = lab.prompt_size[4] = 70;
  lab.Send(s);
  s.request = 4;
  lab.Send(s);
  lab.Settle();
  EXPECT_EQ(lab.Of(4).prompt_logprobs, lab.Of(3).prompt_logprobs);
  EXPECT_EQ(lab.Of(3).prompt_logprobs.size(), 69u);
  s.request = 3;
  EXPECT_EQ(lab.Of(3).tokens, Plainly(s).tokens);
}

TEST(AttentionStates, WhenStatesRunOutTheYoungestIsPreemptedAndNothingChanges) {
  for (uint32_t slots : {2u, 3u, 4u, 7u}) {
    for (uint32_t flights : {1u, 2u, 3u}) {
      AttentionConfig config = Snapshots(32);
      config.flights = flights;
      Lab lab(config, Recurrent(slots));
      for (uint64_t r = 1; r <= 6; ++r) lab.Send(Submit(r, 20, 60));
      lab.Settle();
      for (uint64_t r = 1; r <= 6; ++r) {
        ASSERT_TRUE(lab.Of(r).ended()) << slots << " states, " << flights << " flights";
        EXPECT_EQ(lab.Of(r).tokens.at(0), Plainly(Submit(r, 20, 60)).tokens.at(0)) << slots;
      }
      EXPECT_EQ(lab.core.Leaks(), "");
    }
  }
}

TEST(AttentionStates, APreemptedSequenceComputesItsTokensAgain) {
  HashModel model = Recurrent();
  model.kv_blocks = 9;
  Lab lab(Snapshots(32), model);
  for (uint64_t r = 1; r <= 6; ++r) lab.Send(Submit(r, 20, 60));
  lab.Settle();
  EXPECT_GT(lab.core.stats().preemptions, 0u);
  for (uint64_t r = 1; r <= 6; ++r)
    EXPECT_EQ(lab.Of(r).tokens.at(0), Plainly(Submit(r, 20, 60)).tokens.at(0));
  EXPECT_EQ(lab.core.Leaks(), "");
}

// The flight was on its way through the layers: some wrote their part of the new state, none the old one.
TEST(AttentionStates, AnAbandonedFlightIsDoneAgainFromTheSameState) {
  uint32_t abandoned = 0;
  for (uint32_t step = 1; step <= 24; ++step) {
    AttentionConfig config = Snapshots(32);
    config.flights = 1;
    Lab lab(config, Recurrent());
    lab.Place({{0}, {1}});
    lab.hold = true;
    lab.Send(Submit(1, 20, 12));
    lab.Send(Submit(2, 20, 12));
    // Some layers and flights on, one request's calls are refused as its own fault: the flight is given up,
    // the other request starts it again.
    for (uint32_t i = 0; i < step; ++i) {
      lab.Settle();
      for (const auto& c : std::exchange(lab.held, {})) lab.Answer(c);
    }
    lab.Settle();
    if (lab.held.empty()) break;
    const auto all = std::exchange(lab.held, {});
    lab.Answer(all.back());
    for (size_t i = 0; i + 1 < all.size(); ++i) lab.Reject(all[i], frame::RejectCode::kBadFrame);
    lab.Settle();
    abandoned += lab.abandoned;
    lab.Release();
    for (uint64_t r : {1u, 2u}) {
      ASSERT_TRUE(lab.Of(r).ended());
      if (lab.Of(r).errors > 0) continue;
      EXPECT_EQ(lab.Of(r).tokens, Plainly(Submit(r, 20, 12)).tokens) << step;
    }
    EXPECT_EQ(lab.core.Leaks(), "");
  }
  EXPECT_GT(abandoned, 0u);
}

TEST(AttentionStates, CancelFreesTheStatesWithinOneStep) {
  Lab lab(Snapshots(16), Recurrent());
  lab.hold = true;
  lab.Send(Choices(1, 20, 50, 3), 1);
  lab.Settle();
  ASSERT_FALSE(lab.held.empty());
  EXPECT_GT(lab.core.stats().state_slots_used, 0u);
  lab.Post(attention_event::Cancel{1, 1, -1});
  lab.Settle();
  EXPECT_EQ(lab.core.stats().state_slots_used, 0u);
  EXPECT_EQ(lab.core.Leaks(), "");
}

}  // namespace
}  // namespace consilium
