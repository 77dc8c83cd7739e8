#include "services/attention/attention_core.h"

#include <gtest/gtest.h>

#include "common/base/limits.h"
#include "services/attention/attention_lab_fixture.h"

namespace consilium {
namespace {

TEST(AttentionCore, ARequestGivesItsTokensAndEnds) {
  const Outcome o = Alone(Submit(1, 20, 10));
  EXPECT_EQ(o.accepted, 1u);
  EXPECT_EQ(o.tokens.at(0).size(), 10u);
  EXPECT_EQ(o.finishes.at(0), FinishReason::kLength);
}

TEST(AttentionCore, TokensDoNotDependOnChunksFlightsBatchOrCache) {
  std::map<uint64_t, Tokens> want;
  for (uint64_t r = 1; r <= 12; ++r) want[r] = Alone(Submit(r, 5 + r * 7, 12)).tokens.at(0);
  ExpectTokensUnderEveryPlan(want, HashModel(), 256);
}

TEST(AttentionCore, ASecondRequestWithTheSamePromptHitsThePrefixCache) {
  Lab lab;
  lab.Send(Submit(1, 40, 5));
  lab.Settle();
  SessionSubmit again = Submit(1, 40, 5);
  again.request = 2;
  lab.Send(again);
  lab.Settle();
  EXPECT_EQ(lab.Of(2).cached, 32u);
  EXPECT_EQ(lab.Of(2).tokens, lab.Of(1).tokens);
  again.request = 3;
  again.cache_salt = "other";
  lab.Send(again);
  lab.Settle();
  EXPECT_EQ(lab.Of(3).cached, 0u);
}

TEST(AttentionCore, ChoicesForkAfterThePromptAndEqualChoicesAlone) {
  for (size_t prompt : {1u, 15u, 16u, 17u, 33u}) {
    for (bool cache : {true, false}) {
      AttentionConfig config;
      config.prefix_cache = cache;
      SessionSubmit s = Submit(7, prompt, 20);
      s.n = 3;
      const Outcome o = Alone(s, config);
      ASSERT_EQ(o.finishes.size(), 3u);
      EXPECT_EQ(o.tokens.at(0), Alone(Submit(7, prompt, 20)).tokens.at(0));
      EXPECT_NE(o.tokens.at(0), o.tokens.at(1));
      // A resumed choice 2 goes on with the same tokens.
      SessionSubmit resumed = s;
      for (uint32_t c = 0; c < 3; ++c)
        resumed.history.push_back({c, Tokens(o.tokens.at(c).begin(), o.tokens.at(c).begin() + 8)});
      const Outcome rest = Alone(resumed, config);
      for (uint32_t c = 0; c < 3; ++c) {
        EXPECT_EQ(rest.tokens.at(c), Tokens(o.tokens.at(c).begin() + 8, o.tokens.at(c).end()));
      }
    }
  }
}

TEST(AttentionCore, PromptLogprobsComeOnceAndBypassTheCache) {
  SessionSubmit s = Submit(3, 37, 4);
  s.prompt_logprobs = true;
  Lab lab;
  lab.prompt_size[3] = lab.prompt_size[4] = 37;
  lab.Send(s);
  lab.Settle();
  s.request = 4;
  lab.Send(s);
  lab.Settle();
  EXPECT_EQ(lab.Of(4).cached, 0u);
  EXPECT_EQ(lab.Of(3).prompt_logprobs.size(), 36u);
  EXPECT_EQ(lab.Of(3).prompt_logprobs, lab.Of(4).prompt_logprobs);
  EXPECT_EQ(lab.Of(3).tokens, lab.Of(4).tokens);
}

TEST(AttentionCore, WithMaxTokens0OnlyThePromptIsComputed) {
  SessionSubmit s = Submit(3, 20, 0);
  s.prompt_logprobs = true;
  s.n = 2;
  Lab lab;
  lab.prompt_size[3] = 20;
  lab.Send(s);
  lab.Settle();
  EXPECT_EQ(lab.Of(3).prompt_logprobs.size(), 19u);
  EXPECT_TRUE(lab.Of(3).tokens.empty());
  EXPECT_EQ(lab.Of(3).finishes.size(), 2u);
}

TEST(AttentionCore, StopIdsEndAChoiceButNotBeforeMinTokens) {
  const Tokens all = Alone(Submit(5, 9, 30)).tokens.at(0);
  SessionSubmit s = Submit(5, 9, 30);
  s.stop_ids = {all[6]};
  const Outcome o = Alone(s);
  EXPECT_EQ(o.finishes.at(0), FinishReason::kStop);
  EXPECT_EQ(o.tokens.at(0), Tokens(all.begin(), std::find(all.begin(), all.end(), all[6]) + 1));
  s.min_tokens = 12;
  EXPECT_GT(Alone(s).tokens.at(0).size(), 12u);
}

TEST(AttentionCore, AResumedChoiceThatWasAtItsEndEndsAtOnce) {
  SessionSubmit s = Submit(5, 9, 3);
  s.history = {{0, {1, 2, 3}}};
  const Outcome o = Alone(s);
  EXPECT_EQ(o.finishes.at(0), FinishReason::kLength);
  EXPECT_TRUE(o.tokens.empty());
}

TEST(AttentionCore, BadRequestsGetClearErrors) {
  auto code = [](SessionSubmit s) { return static_cast<absl::StatusCode>(Alone(std::move(s)).error_code); };
  SessionSubmit s = Submit(1, 513, 0);
  EXPECT_EQ(code(s), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Submit(1, 512, 1)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Submit(1, 512, 0)), absl::StatusCode::kOk);
  EXPECT_EQ(code(Submit(1, 0, 5)), absl::StatusCode::kInvalidArgument);
  s = Submit(1, 5, 1);
  s.prompt[2] = 1000;
  EXPECT_EQ(code(s), absl::StatusCode::kInvalidArgument);
  s = Submit(1, 5, 1);
  s.manifest = "other";
  EXPECT_EQ(code(s), absl::StatusCode::kFailedPrecondition);
  s = Submit(1, 5, 1);
  s.n = 0;
  EXPECT_EQ(code(s), absl::StatusCode::kInvalidArgument);
  HashModel small;
  small.kv_blocks = 2;
  EXPECT_EQ(Alone(Submit(1, 20, 30), {}, small).error_code,
            static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Alone(Submit(1, 20, 13), {}, small).tokens.at(0).size(), 13u);
}

TEST(AttentionCore, WhenPagesRunOutTheYoungestIsPreemptedAndNothingChanges) {
  HashModel model;
  model.kv_blocks = 9;
  Lab lab({}, model);
  for (uint64_t r = 1; r <= 6; ++r) lab.Send(Submit(r, 20, 60));
  lab.Settle();
  EXPECT_GT(lab.core.stats().preemptions, 0u);
  for (uint64_t r = 1; r <= 6; ++r) EXPECT_EQ(lab.Of(r).tokens.at(0), Alone(Submit(r, 20, 60)).tokens.at(0));
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionCore, TheQueueIsBounded) {
  AttentionConfig config;
  config.waiting_requests_max = 2;
  Lab lab(config);
  lab.hold = true;
  lab.Settle();
  for (uint64_t r = 1; r <= 9; ++r) lab.Send(Submit(r, 20, 2));
  lab.Settle();
  uint32_t refused = 0;
  for (uint64_t r = 1; r <= 9; ++r) {
    refused += lab.Of(r).error_code == static_cast<uint32_t>(absl::StatusCode::kResourceExhausted);
  }
  EXPECT_GT(refused, 0u);
  EXPECT_LE(lab.core.stats().requests_waiting, 2u);
  lab.Release();
  for (uint64_t r = 1; r <= 9; ++r) EXPECT_TRUE(lab.Of(r).ended());
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionCore, CancelAndAClosedSessionFreeEverythingWithinOneStep) {
  Lab lab;
  lab.hold = true;
  lab.Send(Submit(1, 20, 50), 1);
  lab.Settle();
  lab.Send(Submit(2, 20, 50), 2);
  lab.Settle();
  ASSERT_FALSE(lab.held.empty());
  lab.Post(attention_event::Cancel{1, 1, -1});
  lab.Post(attention_event::SessionClosed{2});
  lab.Settle();
  EXPECT_EQ(lab.Of(1).finishes.at(0), FinishReason::kCancelled);
  EXPECT_TRUE(lab.Of(2).finishes.empty());
  EXPECT_GT(lab.cancelled_calls, 0u);
  EXPECT_EQ(lab.core.Leaks(), "") << "no call was answered, yet all is free";
  EXPECT_EQ(lab.backend.live_flights(), 0u);
}

TEST(AttentionCore, OneChoiceCanBeCancelledAndTheOthersGoOn) {
  for (int32_t victim : {0, 1}) {
    SessionSubmit s = Submit(7, 20, 10);
    s.n = 2;
    Lab lab;
    lab.hold = true;
    lab.Send(s);
    lab.Settle();
    lab.Post(attention_event::Cancel{1, 7, victim});
    lab.Settle();
    lab.Release();
    const uint32_t other = victim == 0 ? 1 : 0;
    EXPECT_EQ(lab.Of(7).finishes.at(static_cast<uint32_t>(victim)), FinishReason::kCancelled);
    EXPECT_EQ(lab.Of(7).tokens.at(other), Alone(s).tokens.at(other));
    EXPECT_EQ(lab.core.Leaks(), "");
  }
}

TEST(AttentionCore, ALostStreamsCallsGoToAnotherReplica) {
  Lab lab;
  lab.hold = true;
  lab.Send(Submit(1, 20, 5));
  lab.Settle();
  lab.ChannelDown(0);
  lab.Release();
  EXPECT_EQ(lab.Of(1).tokens, Alone(Submit(1, 20, 5)).tokens);
  EXPECT_GT(lab.core.stats().resends, 0u);
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionCore, ARefusalIsSaidOnceNotAtEveryReconnect) {
  Lab lab;
  lab.Place({{0}, {1}});
  const auto refuse = [&](const char* why) {
    lab.Post(attention_event::ChannelDown{ShardId(0), Lane::kDecode, absl::FailedPreconditionError(why)});
    lab.Settle();
  };
  lab.ChannelDown(0);  // a break, no refusal
  lab.Settle();
  lab.warnings.clear();
  for (int i = 0; i < 3; ++i) refuse("CLASS_MISMATCH");
  ASSERT_EQ(lab.warnings.size(), 1u);
  EXPECT_NE(lab.warnings[0].find("cannot be used: CLASS_MISMATCH"), std::string::npos);
  refuse("UNKNOWN_MODEL");
  EXPECT_EQ(lab.warnings.size(), 2u);
  lab.Revive(0);
  refuse("UNKNOWN_MODEL");  // as a stream that breaks
  refuse("UNKNOWN_MODEL");
  EXPECT_EQ(lab.warnings.size(), 3u);
}

TEST(AttentionCore, AFailedCallIsSentAgainWithTheSameBodyUnlessItsSlotsGoApart) {
  Lab lab;
  lab.Place({{0, 1}, {0, 1}});
  lab.hold = true;
  lab.Send(Submit(1, 20, 5));
  lab.Settle();
  std::vector<const CallBody*> first;
  for (const auto& c : lab.held) first.push_back(c.body.get());
  ASSERT_EQ(first.size(), 2u) << "one call to each shard";
  const auto lost = lab.held[0];
  lab.ChannelDown(lost.shard.value);
  lab.Settle();
  ASSERT_EQ(lab.held.size(), 2u);
  const auto& again = lab.held[1];
  EXPECT_EQ(again.body.get(), first[0]);
  EXPECT_NE(again.shard, lost.shard);
  EXPECT_EQ(again.options.flags, frame::kRetry);
  // Nobody is left: the bodies wait. Two shards with half of the experts each come: all is planned anew.
  lab.ChannelDown(again.shard.value);
  lab.Settle();
  ASSERT_TRUE(lab.held.empty());
  lab.Place({{0}, {1}});
  lab.Revive(0);
  lab.Revive(1);
  lab.Settle();
  ASSERT_EQ(lab.held.size(), 2u);
  for (const auto& c : lab.held) {
    for (const frame::Slot& slot : c.body->slots()) EXPECT_EQ(slot.expert % 2u, c.shard.value);
  }
  lab.Release();
  EXPECT_EQ(lab.Of(1).tokens, Alone(Submit(1, 20, 5)).tokens);
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionCore, WithoutAnyReplicaARequestWaitsUntilOneComesBack) {
  Lab lab;
  lab.Settle();
  lab.ChannelDown(0);
  lab.ChannelDown(1);
  lab.Send(Submit(1, 20, 5));
  lab.Settle();
  EXPECT_FALSE(lab.Of(1).ended());
  lab.Revive(1);
  lab.Settle();
  EXPECT_EQ(lab.Of(1).tokens, Alone(Submit(1, 20, 5)).tokens);
}

TEST(AttentionCore, OnlyRequestsPastTheirDeadlineFail) {
  Lab lab;
  lab.Settle();
  lab.ChannelDown(0);
  lab.ChannelDown(1);
  SessionSubmit hasty = Submit(1, 20, 5);
  hasty.budget_ms = 50;
  lab.Send(hasty);
  lab.Send(Submit(2, 20, 5));
  lab.Settle();
  EXPECT_EQ(lab.core.next_deadline(), lab.now + 50000);
  lab.Wait(50000);
  EXPECT_EQ(lab.Of(1).error_code, static_cast<uint32_t>(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(lab.Of(2).ended());
  lab.Revive(0);
  lab.Settle();
  EXPECT_EQ(lab.Of(2).tokens, Alone(Submit(2, 20, 5)).tokens);
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionCore, RejectedCallsAreResentElsewhereOrLater) {
  using frame::RejectCode;
  for (RejectCode code :
       {RejectCode::kNotHosted, RejectCode::kLoading, RejectCode::kDraining, RejectCode::kOverloaded,
        RejectCode::kExpired, RejectCode::kCorrupt, RejectCode::kInternal, RejectCode::kUnknownModel}) {
    Lab lab;
    lab.rejecting[0] = code;
    lab.Send(Submit(1, 20, 5));
    lab.Settle();
    EXPECT_EQ(lab.Of(1).tokens, Alone(Submit(1, 20, 5)).tokens) << frame::RejectName(code);
    // No other replica: it waits with a growing pause and goes on once the shard takes calls.
    lab.Place({{0}, {0}}, 1);
    lab.Send(Submit(2, 20, 5));
    lab.Settle();
    for (int i = 0; i < 10 && lab.core.next_deadline() - lab.now < 10'000'000; ++i) {
      ASSERT_FALSE(lab.Of(2).ended());
      lab.Wait(lab.core.next_deadline() - lab.now);
    }
    EXPECT_LE(lab.core.stats().resends, 800u);
    lab.rejecting.clear();
    lab.Wait(6'000'000);
    EXPECT_EQ(lab.Of(2).tokens, Alone(Submit(2, 20, 5)).tokens) << frame::RejectName(code);
    EXPECT_EQ(lab.core.Leaks(), "");
  }
}

TEST(AttentionCore, ABadFrameFailsItsRequestsInsteadOfLooping) {
  Lab lab;
  lab.rejecting[0] = lab.rejecting[1] = frame::RejectCode::kBadFrame;
  lab.Send(Submit(1, 20, 5));
  lab.Settle();
  EXPECT_EQ(lab.Of(1).error_code, static_cast<uint32_t>(absl::StatusCode::kInternal));
  EXPECT_EQ(lab.core.Leaks(), "");
}

TEST(AttentionCore, OnlyTheRequestsOfABadFrameFailAndTheOthersOfItsFlightStartOver) {
  uint32_t tried = 0;
  for (uint64_t other = 2; other <= 60 && tried < 3; ++other) {
    AttentionConfig config;
    config.flights = 1;
    Lab lab(config);
    lab.Place({{0}, {1}});
    lab.Settle();
    lab.hold = true;
    lab.Send(Submit(90, 3, 1));  // keeps the flight busy until both others are there
    lab.Settle();
    lab.Send(Submit(1, 20, 5));
    lab.Send(Submit(other, 1, 5));
    lab.Settle();
    lab.hold = false;
    while (lab.Of(90).finishes.empty()) {
      for (const auto& c : std::exchange(lab.held, {})) lab.Answer(c);
      lab.hold = true;
      lab.Settle();
    }
    // A call with rows of the first request only.
    for (const auto& c : lab.held) {
      frame::View view;
      const WireFrame wire = c.body->Frame(c.call, c.options.epoch, c.options.budget_us, c.options.flags);
      ASSERT_TRUE(frame::Decode(wire, &view).ok());
      if (lab.held.size() < 2 || view.segments.size() != 1 || view.header.n_rows < 2) continue;
      ++tried;
      lab.Reject(c, frame::RejectCode::kBadFrame);
      lab.Settle();
      lab.Release();
      EXPECT_EQ(lab.Of(1).error_code, static_cast<uint32_t>(absl::StatusCode::kInternal));
      EXPECT_EQ(lab.Of(other).tokens, Alone(Submit(other, 1, 5)).tokens);
      EXPECT_EQ(lab.core.Leaks(), "");
      break;
    }
  }
  EXPECT_GT(tried, 0u);
}

TEST(AttentionCore, CallsWaitForCreditAndNeverExceedIt) {
  AttentionConfig config;
  config.flight_rows_max = 32;
  Lab lab(config);
  lab.credit = {32, 1 << 20};
  lab.return_credit = false;
  for (uint64_t r = 1; r <= 3; ++r) lab.Send(Submit(r, 60, 4));
  lab.Settle();
  EXPECT_GT(lab.core.stats().calls_queued, 0u);
  for (auto& [shard, rows] : lab.rows_sent) {
    for (uint64_t n : rows) EXPECT_LE(n, 32u);
  }
  lab.return_credit = true;
  for (uint32_t s : {0u, 1u}) {
    for (Lane lane : {Lane::kDecode, Lane::kBulk}) {
      lab.granted[{s, lane}] = {100000, 1 << 28};
      lab.Post(attention_event::ChannelCredit{ShardId(s), lane, {100000, 1 << 28}});
    }
  }
  lab.Settle();
  for (uint64_t r = 1; r <= 3; ++r) EXPECT_EQ(lab.Of(r).tokens, Alone(Submit(r, 60, 4)).tokens);
}

TEST(AttentionCore, DecodeFlightsUseTheDecodeLaneAndPromptsTheBulkLane) {
  Lab lab;
  lab.Send(Submit(1, 20, 5));
  lab.Settle();
  uint64_t decode = 0, bulk = 0;
  for (auto& [shard, rows] : lab.rows_sent) {
    decode += rows[0];
    bulk += rows[1];
  }
  EXPECT_GT(decode, 0u);
  EXPECT_GT(bulk, decode);
}

TEST(AttentionCore, OlderPlacementsAreIgnoredAndAShardThatLeftFinishesItsCalls) {
  Lab lab;
  lab.hold = true;
  lab.Send(Submit(1, 20, 3));
  lab.Settle();
  const uint64_t newest = lab.epoch;
  lab.epoch = newest - 1;
  lab.Place({{}, {}}, 0);  // the same epoch again
  lab.Settle();
  for (const ShardStats& s : lab.core.stats().shards) EXPECT_TRUE(s.up[0] && s.up[1]) << s.name;
  lab.epoch = newest;
  lab.Place({{0}, {0}}, 1);
  lab.Settle();
  EXPECT_EQ(lab.disconnected, 0u) << "shard 1 still has a call";
  lab.Release();
  EXPECT_EQ(lab.disconnected, 1u);
  ASSERT_EQ(lab.core.stats().shards.size(), 2u) << "its counts stay";
  EXPECT_FALSE(lab.core.stats().shards[1].up[0]);
  EXPECT_GT(lab.core.stats().shards[0].results, 0u);
  EXPECT_EQ(lab.Of(1).tokens, Alone(Submit(1, 20, 3)).tokens);
}

TEST(AttentionCore, AResultDeliveredTwiceIsCountedAndIgnored) {
  Lab lab;
  lab.hold = true;
  lab.Send(Submit(1, 20, 3));
  lab.Settle();
  const auto calls = lab.held;
  lab.held.clear();
  for (const auto& c : calls) {
    lab.Answer(c);
    lab.Answer(c);
  }
  lab.Release();
  EXPECT_GT(lab.core.stats().unknown_results, 0u);
  EXPECT_EQ(lab.Of(1).tokens, Alone(Submit(1, 20, 3)).tokens);
}

TEST(AttentionCore, ADrainingWorkerEndsWhatItHasAndTakesNothingNew) {
  Lab lab;
  lab.hold = true;
  lab.Send(Submit(1, 20, 3));
  lab.Settle();
  lab.Post(attention_event::Drain{});
  lab.Send(Submit(2, 20, 3));
  lab.Settle();
  EXPECT_EQ(lab.Of(2).error_code, static_cast<uint32_t>(absl::StatusCode::kUnavailable));
  lab.Release();
  EXPECT_EQ(lab.Of(1).tokens.at(0).size(), 3u);
  EXPECT_EQ(lab.core.live_requests(), 0u);
}

}  // namespace
}  // namespace consilium
