// What every ExpertChannel promises, as one typed test suite. A transport gives a harness:
//   struct Harness { BufferPool pool; ScriptedShard shard; std::unique_ptr<ExpertChannel> Connect(Sink*,
//   Lane, RouterHello);
//                    void BreakStreams(); void Reconnect(ExpertChannel*); }
// Reconnect may do nothing where the channel reconnects by itself.
#pragma once
#include <gtest/gtest.h>

#include "common/base/limits.h"
#include "common/net/channel_fixture.h"

namespace consilium {

template <class Harness>
class ExpertChannelContract : public ::testing::Test {
 protected:
  void Up(Lane lane = Lane::kDecode) {
    channel = h.Connect(&sink, lane, MakeHello());
    ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.ups == 1; }));
  }
  absl::Status Send(uint64_t id, const std::vector<uint64_t>& values, uint32_t budget_us = 1'000'000) {
    return channel->Send(CallId{id}, MakeBody(&h.pool, values), CallOptions{Epoch{}, budget_us, 0});
  }
  bool Results(size_t n) {
    return sink.WaitFor([&](const auto& x) { return x.results.size() >= n; });
  }
  bool Rejects(size_t n) {
    return sink.WaitFor([&](const auto& x) { return x.rejects.size() >= n; });
  }

  Harness h;
  RecordingSink sink;
  std::unique_ptr<ExpertChannel> channel;
};
TYPED_TEST_SUITE_P(ExpertChannelContract);

TYPED_TEST_P(ExpertChannelContract, TheHandshakeCarriesWhoIsWho) {
  this->Up(Lane::kBulk);
  const auto heard = this->sink.heard();
  EXPECT_EQ(heard.shard_id, 5u);
  EXPECT_EQ(heard.incarnation, 77u);
  EXPECT_EQ(heard.credit.rows, 100u);
  ASSERT_EQ(this->h.shard.hellos.size(), 1u);
  const RouterHello& hello = this->h.shard.hellos[0];
  EXPECT_EQ(hello.router_id, "router-1");
  EXPECT_EQ(hello.incarnation, MakeHello().incarnation);
  EXPECT_EQ(hello.models[0].manifest, std::string(32, 'm'));
  EXPECT_EQ(hello.classes[0].fingerprint, MakeHello().classes[0].fingerprint);
  EXPECT_EQ(this->h.shard.lanes[0], Lane::kBulk);
}

TYPED_TEST_P(ExpertChannelContract, ResultsCarrySlotsInTableOrder) {
  this->Up();
  ASSERT_TRUE(this->Send(1, {10, 20}).ok());
  ASSERT_TRUE(this->Results(1));
  EXPECT_EQ(this->sink.heard().results[0].values, (std::vector<uint64_t>{10, 20, 10, 20}));
}

TYPED_TEST_P(ExpertChannelContract, FramesKeepTheirOrderBothWays) {
  this->Up();
  for (uint64_t id = 1; id <= 50; ++id) ASSERT_TRUE(this->Send(id, {id}).ok());
  ASSERT_TRUE(this->Results(50));
  const auto heard = this->sink.heard();
  for (uint64_t id = 1; id <= 50; ++id) EXPECT_EQ(heard.results[id - 1].call, id);
  EXPECT_EQ(this->h.shard.calls.size(), 50u);
  EXPECT_TRUE(std::is_sorted(this->h.shard.calls.begin(), this->h.shard.calls.end()));
}

TYPED_TEST_P(ExpertChannelContract, PartialResultsArriveAndTheLastEndsTheCall) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View& call) {
    s->Answer(link, call, frame::Range{2, 2}, false);
    s->Answer(link, call, frame::Range{0, 2}, true);
    s->Answer(link, call);  // doubled: the call is over
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {10, 20}).ok());
  ASSERT_TRUE(this->Send(2, {30, 40}).ok());
  ASSERT_TRUE(this->Results(4));
  const auto results = this->sink.heard().results;
  EXPECT_FALSE(results[0].last);
  EXPECT_TRUE(results[1].last);
  EXPECT_EQ(results[2].call, 2u);
}

TYPED_TEST_P(ExpertChannelContract, AResultWithMissingSlotsIsAnInternalReject) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View& call) {
    s->Answer(link, call, frame::Range{0, 1}, true);
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {10}).ok());
  ASSERT_TRUE(this->Rejects(1));
  EXPECT_EQ(this->sink.heard().rejects[0].code, frame::RejectCode::kInternal);
}

TYPED_TEST_P(ExpertChannelContract, ARejectCarriesCodeArgumentAndText) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View& call) {
    s->Write(link, frame::EncodeReject(call.header.call, Epoch{}, frame::RejectCode::kLoading, 1234, "eta",
                                       s->pool()));
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {10}).ok());
  ASSERT_TRUE(this->Rejects(1));
  const auto reject = this->sink.heard().rejects[0];
  EXPECT_EQ(reject.call.value, 1u);
  EXPECT_EQ(reject.code, frame::RejectCode::kLoading);
  EXPECT_EQ(reject.arg, 1234u);
  EXPECT_EQ(reject.text, "eta");
}

TYPED_TEST_P(ExpertChannelContract, ACorruptResultIsACorruptRejectAndTheStreamLives) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View& call) {
    s->Answer(link, call, std::nullopt, true, call.header.call.value == 1);
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {10}).ok());
  ASSERT_TRUE(this->Send(2, {20}).ok());
  ASSERT_TRUE(this->Results(1));
  ASSERT_TRUE(this->Rejects(1));
  const auto heard = this->sink.heard();
  EXPECT_EQ(heard.rejects[0].call.value, 1u);
  EXPECT_EQ(heard.rejects[0].code, frame::RejectCode::kCorrupt);
  EXPECT_EQ(heard.results[0].call, 2u);
  EXPECT_EQ(heard.downs, 0);
}

TYPED_TEST_P(ExpertChannelContract, ACancelReachesTheShardAndSilencesItsAnswer) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View& call) {
    if (call.header.call.value == 2) s->Answer(link, call);
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {10}).ok());
  this->channel->Cancel(CallId{1});
  this->channel->Cancel(CallId{99});  // unknown: nothing
  ASSERT_TRUE(this->Send(2, {20}).ok());
  ASSERT_TRUE(this->Results(1));
  ASSERT_TRUE(this->h.shard.WaitFor([](const auto& s) { return s.cancels.size() == 1; }));
  EXPECT_EQ(this->h.shard.cancels, std::vector<uint64_t>{1});
  EXPECT_EQ(this->sink.heard().results[0].call, 2u);
}

TYPED_TEST_P(ExpertChannelContract, CreditIsCountedAndTopsUp) {
  this->h.shard.set_welcome([](WelcomeInfo* w) { w->credit = Credit{3, 1 << 20}; });
  this->Up();
  ASSERT_TRUE(this->Send(1, {1, 2}).ok());
  EXPECT_EQ(this->Send(2, {1, 2}).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(this->Send(2, {1}).ok());
  this->h.shard.WriteAll([&] { return frame::EncodeCredit(5, 1 << 20, &this->h.pool); });
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.credit.rows == 5; }));
  EXPECT_TRUE(this->Send(3, {1, 2}).ok());
}

TYPED_TEST_P(ExpertChannelContract, ByteCreditIsCountedToo) {
  this->h.shard.set_welcome([](WelcomeInfo* w) { w->credit = Credit{100, 250}; });
  this->Up();
  ASSERT_TRUE(this->Send(1, {1}).ok());
  EXPECT_EQ(this->Send(2, {1}).code(), absl::StatusCode::kResourceExhausted);
}

TYPED_TEST_P(ExpertChannelContract, ALowerCreditNeverTakesBack) {
  this->Up();
  this->h.shard.WriteAll([&] { return frame::EncodeCredit(1, 1, &this->h.pool); });
  this->h.shard.WriteAll([&] { return frame::EncodeHeartbeat(frame::Timing{}, &this->h.pool); });
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.heartbeats == 1; }));
  EXPECT_EQ(this->sink.heard().credit.rows, 100u);
  EXPECT_TRUE(this->Send(1, {1, 2}).ok());
}

TYPED_TEST_P(ExpertChannelContract, WrongSendsAreRefusedAndCostNothing) {
  this->Up();
  EXPECT_EQ(this->Send(1, {1}, 0).code(), absl::StatusCode::kInvalidArgument);  // budget 0
  ASSERT_TRUE(this->Send(5, {1}).ok());
  EXPECT_EQ(this->Send(5, {1}).code(), absl::StatusCode::kInvalidArgument);  // ids must rise
  EXPECT_EQ(this->Send(4, {1}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(this->Results(1));
  EXPECT_EQ(this->h.shard.calls.size(), 1u);
}

TYPED_TEST_P(ExpertChannelContract, AFrameAboveTheCapIsRefused) {
  this->h.shard.set_welcome([](WelcomeInfo* w) { w->credit = Credit{10000, 100 << 20}; });
  this->Up();
  const std::vector<std::byte> source(2 << 20);
  const uint32_t rows[5] = {0, 0, 0, 0, 0};
  const frame::Segment segment{0, 0, 5, 0, 0, 0, 0};
  const frame::Slot slot{0, 0, 0, 0, 0};
  CallBody::Plan plan;
  plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
  plan.hidden = 32768;  // 256 KiB a row
  plan.segments = {&segment, 1};
  plan.slots = {&slot, 1};
  plan.source_rows = rows;
  plan.source = source.data();
  const auto body = CallBody::Build(plan, &this->h.pool);
  ASSERT_GT(body->frame_bytes(), kFrameBytesMax);
  EXPECT_EQ(this->channel->Send(CallId{1}, body, CallOptions{Epoch{}, 1, 0}).code(),
            absl::StatusCode::kInvalidArgument);
}

TYPED_TEST_P(ExpertChannelContract, AnOversizedAnswerBreaksTheStreamOnly) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View&) {
    s->Write(link, frame::EncodePayload(frame::Kind::kWelcome,
                                        std::string(kFrameBytesMax + kFrameSlackBytes, 'x'), s->pool()));
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {1}).ok());
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.downs == 1; }));
}

TYPED_TEST_P(ExpertChannelContract, AnUnknownWireVersionClosesTheStream) {
  this->h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View&) {
    BufferRef frame = frame::EncodeBare(frame::Kind::kDrain, s->pool());
    frame.data()[4] = std::byte{2};
    s->Write(link, frame);
  });
  this->Up();
  ASSERT_TRUE(this->Send(1, {1}).ok());
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.downs == 1; }));
  EXPECT_EQ(this->sink.heard().down.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(this->sink.heard().results.empty());
}

TYPED_TEST_P(ExpertChannelContract, ARefusedClassKeepsTheChannelDown) {
  this->h.shard.set_welcome([](WelcomeInfo* w) { w->classes[0] = BindCode::kClassMismatch; });
  this->channel = this->h.Connect(&this->sink, Lane::kDecode, MakeHello());
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.downs >= 1; }));
  EXPECT_EQ(this->sink.heard().ups, 0);
  EXPECT_EQ(this->sink.heard().down.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(this->Send(1, {1}).code(), absl::StatusCode::kUnavailable);
}

TYPED_TEST_P(ExpertChannelContract, DrainIsHeard) {
  this->Up();
  this->h.shard.WriteAll([&] { return frame::EncodeBare(frame::Kind::kDrain, &this->h.pool); });
  EXPECT_TRUE(this->sink.WaitFor([](const auto& x) { return x.drains == 1; }));
}

TYPED_TEST_P(ExpertChannelContract, ABrokenStreamIsDownOnceThenUpAgainWithFreshIdsAndCredit) {
  this->h.shard.Script([](ScriptedShard*, FrameLink*, const frame::View&) {});  // never answers
  this->Up();
  ASSERT_TRUE(this->Send(7, {1, 2}).ok());
  ASSERT_TRUE(this->h.shard.WaitFor([](const auto& s) { return s.calls.size() == 1; }));
  this->h.BreakStreams();
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.downs == 1; }));
  ASSERT_TRUE(this->h.shard.WaitFor([](const auto& s) { return s.closed == 1; }));
  this->h.shard.Script(nullptr);
  this->h.Reconnect(this->channel.get());
  ASSERT_TRUE(this->sink.WaitFor([](const auto& x) { return x.ups == 2; }));
  ASSERT_TRUE(this->Send(1, {9}).ok());  // ids start anew
  ASSERT_TRUE(this->Results(1));
  const auto heard = this->sink.heard();
  EXPECT_EQ(heard.downs, 1);
  EXPECT_EQ(heard.results[0].call, 1u);
  EXPECT_EQ(heard.order[0], "up");
  EXPECT_EQ(heard.order[1], "down");
  EXPECT_EQ(heard.order[2], "up");
}

TYPED_TEST_P(ExpertChannelContract, DestroyingAChannelClosesItsStreamAtTheShard) {
  this->Up();
  this->channel.reset();
  EXPECT_TRUE(this->h.shard.WaitFor([](const auto& s) { return s.closed == 1; }));
}

TYPED_TEST_P(ExpertChannelContract, ABodyIsSentTwiceUnchanged) {
  this->Up();
  const auto body = MakeBody(&this->h.pool, {4, 5});
  ASSERT_TRUE(this->channel->Send(CallId{1}, body, CallOptions{Epoch{}, 10, 0}).ok());
  ASSERT_TRUE(this->channel->Send(CallId{2}, body, CallOptions{Epoch{}, 20, frame::kRetry}).ok());
  ASSERT_TRUE(this->Results(2));
  const auto results = this->sink.heard().results;
  EXPECT_EQ(results[0].values, results[1].values);
}

REGISTER_TYPED_TEST_SUITE_P(ExpertChannelContract, TheHandshakeCarriesWhoIsWho, ResultsCarrySlotsInTableOrder,
                            FramesKeepTheirOrderBothWays, PartialResultsArriveAndTheLastEndsTheCall,
                            AResultWithMissingSlotsIsAnInternalReject, ARejectCarriesCodeArgumentAndText,
                            ACorruptResultIsACorruptRejectAndTheStreamLives,
                            ACancelReachesTheShardAndSilencesItsAnswer, CreditIsCountedAndTopsUp,
                            ByteCreditIsCountedToo, ALowerCreditNeverTakesBack,
                            WrongSendsAreRefusedAndCostNothing, AFrameAboveTheCapIsRefused,
                            AnOversizedAnswerBreaksTheStreamOnly, AnUnknownWireVersionClosesTheStream,
                            ARefusedClassKeepsTheChannelDown, DrainIsHeard,
                            ABrokenStreamIsDownOnceThenUpAgainWithFreshIdsAndCredit,
                            DestroyingAChannelClosesItsStreamAtTheShard, ABodyIsSentTwiceUnchanged);

}  // namespace consilium
