#include "common/net/grpc_channel.h"

#include "common/net/expert_channel_contract.h"
#include "common/net/expert_dialer.h"
#include "common/net/grpc_server.h"

namespace consilium {
namespace {

struct GrpcHarness {
  BufferPool pool;  // first: outlives all that holds frames
  ScriptedShard shard{&pool};
  ExpertDialer dialer{false, &pool};
  std::unique_ptr<GrpcFrameServer> server = Listen("127.0.0.1:0");

  std::unique_ptr<GrpcFrameServer> Listen(const std::string& address) {
    auto s = GrpcFrameServer::Start(address, 1, &shard, &pool, [] {
      ShardDescription d;
      d.name = "scripted";
      d.fingerprint = 3;
      d.experts = {{1, 2, 3}};
      return d;
    });
    CHECK_MSG(s.ok(), ToString(s.status()));
    return std::move(*s);
  }
  std::unique_ptr<ExpertChannel> Connect(ExpertChannel::Sink* sink, Lane lane, RouterHello hello) {
    return dialer.Connect(server->address(), lane, std::move(hello), sink);
  }
  void BreakStreams() { server->BreakStreams(); }
  void Reconnect(ExpertChannel*) {}  // by itself
};

INSTANTIATE_TYPED_TEST_SUITE_P(Grpc, ExpertChannelContract, GrpcHarness);

TEST(GrpcServer, ABusyPortIsAClearError) {
  GrpcHarness h;
  const auto second = GrpcFrameServer::Start(h.server->address(), 1, &h.shard, &h.pool, nullptr);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(Message(second.status()).find(h.server->address()), std::string::npos);
}

TEST(GrpcServer, DescribeTellsWhoTheShardIs) {
  GrpcHarness h;
  const auto d = DescribeShard(h.server->address(), 20'000);
  ASSERT_TRUE(d.ok()) << d.status();
  EXPECT_EQ(d->name, "scripted");
  EXPECT_EQ(d->fingerprint, 3u);
  ASSERT_EQ(d->experts.size(), 1u);
  EXPECT_EQ(d->experts[0].expert, 2u);
}

TEST(GrpcChannelRestart, FindsARestartedShardOnTheSamePort) {
  GrpcHarness h;
  RecordingSink sink;
  auto channel = h.Connect(&sink, Lane::kDecode, MakeHello());
  ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.ups == 1; }));
  const std::string address = h.server->address();
  h.server.reset();
  ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.downs == 1; }));
  EXPECT_EQ(channel->Send(CallId{1}, MakeBody(&h.pool, {1}), CallOptions{Epoch{}, 1, 0}).code(),
            absl::StatusCode::kUnavailable);
  h.server = h.Listen(address);
  ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.ups == 2; }));
  ASSERT_TRUE(channel->Send(CallId{1}, MakeBody(&h.pool, {1}), CallOptions{Epoch{}, 1000, 0}).ok());
  EXPECT_TRUE(sink.WaitFor([](const auto& x) { return x.results.size() == 1; }));
}

TEST(GrpcChannelLanes, LanesAreStreamsOfTheirOwnAndOneMayBreakAlone) {
  GrpcHarness h;
  RecordingSink decode, bulk;
  auto a = h.Connect(&decode, Lane::kDecode, MakeHello());
  auto b = h.Connect(&bulk, Lane::kBulk, MakeHello());
  ASSERT_TRUE(decode.WaitFor([](const auto& x) { return x.ups == 1; }));
  ASSERT_TRUE(bulk.WaitFor([](const auto& x) { return x.ups == 1; }));
  a.reset();
  ASSERT_TRUE(b->Send(CallId{1}, MakeBody(&h.pool, {1}), CallOptions{Epoch{}, 1000, 0}).ok());
  EXPECT_TRUE(bulk.WaitFor([](const auto& x) { return x.results.size() == 1; }));
}

}  // namespace
}  // namespace consilium
