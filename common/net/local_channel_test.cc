#include "common/net/local_channel.h"

#include "common/net/expert_channel_contract.h"
#include "common/net/local_fixture.h"

namespace consilium {
namespace {

struct LocalHarness {
  BufferPool pool;  // first: outlives all that holds frames
  ScriptedShard shard{&pool};
  IoLoop loop;
  std::string address = FreshAddress();
  std::unique_ptr<LocalServer> server = ListenLocal(address, &shard, &pool);

  std::unique_ptr<ExpertChannel> Connect(ExpertChannel::Sink* sink, Lane lane, RouterHello hello) {
    return ConnectLocal(address, &loop, &pool, sink, lane, std::move(hello));
  }
  void BreakStreams() { server->BreakStreams(); }
  void Reconnect(ExpertChannel*) {}  // by itself
};

INSTANTIATE_TYPED_TEST_SUITE_P(Local, ExpertChannelContract, LocalHarness);

const auto kUp = [](const auto& heard) { return heard.ups > heard.downs; };

TEST(LocalServer, ATakenNameIsAClearErrorAndFreeAgainAfterwards) {
  LocalHarness h;
  const auto second = LocalServer::Start(h.address, &h.shard, &h.pool);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(Message(second.status()).find(h.address), std::string::npos);
  h.server.reset();
  EXPECT_TRUE(LocalServer::Start(h.address, &h.shard, &h.pool).ok());
}

TEST(LocalServer, AddressesOfAnyLengthHaveANameOfTheirOwn) {
  LocalHarness h;
  const std::string longest(253, 'h');
  auto a = ListenLocal(longest + ":50051", &h.shard, &h.pool);
  auto b = ListenLocal(longest + ":50052", &h.shard, &h.pool);
  RecordingSink sink;
  const auto channel = ConnectLocal(longest + ":50051", &h.loop, &h.pool, &sink);
  EXPECT_TRUE(sink.WaitFor(kUp));
}

TEST(LocalServer, OneThatEndsDeliversWhatWasWritten) {
  LocalHarness h;
  constexpr int kFrames = 40;  // far more than the socket holds
  const std::string payload(kFrameBytesMax / 2, 'x');
  RawSocket peer;
  ASSERT_TRUE(peer.Connect(h.address));
  ASSERT_TRUE(peer.SendFrame(EncodeHello(MakeHello(), Lane::kDecode, &h.pool)));
  ASSERT_FALSE(peer.ReadFrame().empty());  // WELCOME
  for (int i = 0; i < kFrames; ++i) {
    h.shard.WriteAll([&] { return frame::EncodePayload(frame::Kind::kWelcome, payload, &h.pool); });
  }
  std::thread stop([&] { h.server.reset(); });
  int got = 0;
  while (!peer.ReadFrame().empty()) ++got;
  stop.join();
  EXPECT_EQ(got, kFrames);
  EXPECT_EQ(h.shard.closed, 1);
}

TEST(LocalServer, OneThatEndsDoesNotWaitForAPeerThatDoesNotRead) {
  LocalHarness h;
  RawSocket peer;
  ASSERT_TRUE(peer.Connect(h.address));
  ASSERT_TRUE(peer.SendFrame(EncodeHello(MakeHello(), Lane::kDecode, &h.pool)));
  ASSERT_TRUE(h.shard.WaitFor([](const auto& s) { return !s.hellos.empty(); }));
  const std::string payload(kFrameBytesMax / 2, 'x');
  for (int i = 0; i < 40; ++i) {
    h.shard.WriteAll([&] { return frame::EncodePayload(frame::Kind::kWelcome, payload, &h.pool); });
  }
  h.server.reset();
  EXPECT_EQ(h.shard.closed, 1);
}

TEST(LocalChannel, SaysItsTransportWhileItIsUp) {
  LocalHarness h;
  RecordingSink sink;
  const auto channel = h.Connect(&sink, Lane::kDecode, MakeHello());
  ASSERT_TRUE(sink.WaitFor(kUp));
  EXPECT_STREQ(channel->transport(), "local");
  h.server.reset();
  ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.downs == 1; }));
  EXPECT_STREQ(channel->transport(), "");
}

TEST(LocalChannel, FindsAShardThatComesLaterAndARestartedOne) {
  LocalHarness h;
  h.server.reset();
  RecordingSink sink;
  const auto channel = h.Connect(&sink, Lane::kDecode, MakeHello());
  for (int starts = 1; starts <= 2; ++starts) {
    h.server = ListenLocal(h.address, &h.shard, &h.pool);
    ASSERT_TRUE(sink.WaitFor([&](const auto& x) { return x.ups == starts; }));
    ASSERT_TRUE(channel->Send(CallId{1}, MakeBody(&h.pool, {7}), CallOptions{Epoch{}, 1000, 0}).ok());
    ASSERT_TRUE(sink.WaitFor([&](const auto& x) { return x.results.size() == static_cast<size_t>(starts); }));
    h.server.reset();
    ASSERT_TRUE(sink.WaitFor([&](const auto& x) { return x.downs == starts; }));
  }
}

TEST(LocalChannel, ManyStreamsLeaveNothingBehind) {
  LocalHarness h;
  const size_t files = OpenFiles();
  for (int i = 1; i <= 300; ++i) {
    RecordingSink sink;
    auto channel = h.Connect(&sink, Lane::kDecode, MakeHello());
    ASSERT_TRUE(sink.WaitFor(kUp));
    ASSERT_TRUE(channel->Send(CallId{1}, MakeBody(&h.pool, {7}), CallOptions{Epoch{}, 1000, 0}).ok());
    if (i % 2 == 0) {
      ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.results.size() == 1; }));
    }
    channel.reset();
    ASSERT_TRUE(h.shard.WaitFor([&](const auto& s) { return s.closed == i; }));
  }
  h.server.reset();
  EXPECT_LE(OpenFiles(), files - 1);  // the listening socket and its loop's are gone as well
  EXPECT_EQ(h.pool.live_buffers(), 0u);
}

TEST(LocalChannel, FramesOfTheLargestSizeGoBothWaysOnBothLanes) {
  LocalHarness h;
  h.shard.set_welcome([](WelcomeInfo* w) { w->credit = Credit{10000, 1 << 30}; });
  constexpr uint32_t kHidden = 16384 - 16;  // 8 rows of almost 128 KiB: a frame just below 1 MiB
  const std::vector<uint64_t> source(kHidden, 5);
  std::vector<frame::Slot> slots;
  const std::vector<uint32_t> rows(8, 0);
  for (uint16_t r = 0; r < 8; ++r) slots.push_back({0, r, 0, 0, 0});
  const frame::Segment segment{0, 0, 8, 0, 0, 0, 0};
  CallBody::Plan plan;
  plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
  plan.hidden = kHidden;
  plan.segments = {&segment, 1};
  plan.slots = slots;
  plan.source_rows = rows;
  plan.source = reinterpret_cast<const std::byte*>(source.data());
  const auto body = CallBody::Build(plan, &h.pool);
  ASSERT_LE(body->frame_bytes(), kFrameBytesMax);
  ASSERT_GT(body->frame_bytes(), kFrameBytesMax - 8192);
  h.shard.Script([](ScriptedShard* s, FrameLink* link, const frame::View& call) {
    frame::ResultFrame result = frame::BeginResult(call.header, {0, call.header.n_slots}, s->pool());
    std::memcpy(result.payload, call.payload.data(), call.payload.size());
    frame::FinishResult(&result, call.header, frame::Timing{}, std::vector<uint32_t>{1}, true);
    s->Write(link, std::move(result.buffer));
  });
  RecordingSink sinks[kLanes];
  std::unique_ptr<ExpertChannel> channels[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    channels[lane] = h.Connect(&sinks[lane], static_cast<Lane>(lane), MakeHello());
    ASSERT_TRUE(sinks[lane].WaitFor(kUp));
  }
  constexpr size_t kCalls = 20;
  for (uint64_t id = 1; id <= kCalls; ++id) {
    for (const auto& channel : channels)
      ASSERT_TRUE(channel->Send(CallId{id}, body, CallOptions{Epoch{}, 60'000'000, 0}).ok());
  }
  for (RecordingSink& sink : sinks) {
    ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.results.size() == kCalls; }));
    for (const auto& result : sink.heard().results)
      EXPECT_EQ(result.values, std::vector<uint64_t>(size_t{8} * kHidden, 5));
  }
}

}  // namespace
}  // namespace consilium
