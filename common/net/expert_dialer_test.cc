#include "common/net/expert_dialer.h"

#include <gtest/gtest.h>

#include "common/net/channel_fixture.h"
#include "common/net/grpc_server.h"
#include "common/net/local_fixture.h"

namespace consilium {
namespace {

// A shard with a gRPC door, whose local one is opened and closed.
struct Shard {
  BufferPool pool;
  ScriptedShard shard{&pool};
  std::unique_ptr<GrpcFrameServer> grpc = ListenGrpc("127.0.0.1:0");
  const std::string address = grpc->address();
  std::unique_ptr<LocalServer> local;
  ExpertDialer dialer{true, &pool};
  RecordingSink sink;
  std::unique_ptr<ExpertChannel> channel;
  uint64_t last_call = 0;

  std::unique_ptr<GrpcFrameServer> ListenGrpc(const std::string& at) {
    auto started = GrpcFrameServer::Start(at, 1, &shard, &pool, nullptr);
    CHECK_MSG(started.ok(), ToString(started.status()));
    return std::move(*started);
  }
  void OpenLocal() { local = ListenLocal(address, &shard, &pool); }
  void Connect() { channel = dialer.Connect(address, Lane::kDecode, MakeHello(), &sink); }
  // Once it is up for the nth time: calls are answered, over this transport.
  void ExpectUp(int n, const char* transport) {
    ASSERT_TRUE(sink.WaitFor([&](const auto& x) { return x.ups == n; })) << "time " << n;
    EXPECT_STREQ(channel->transport(), transport);
    const size_t before = sink.heard().results.size();
    ASSERT_TRUE(channel->Send(CallId{++last_call}, MakeBody(&pool, {3}), CallOptions{Epoch{}, 1000, 0}).ok());
    EXPECT_TRUE(sink.WaitFor([&](const auto& x) { return x.results.size() == before + 1; }));
  }
};

TEST(ExpertDialer, UsesTheLocalSocketWhereThereIsOne) {
  Shard s;
  s.OpenLocal();
  s.Connect();
  s.ExpectUp(1, "local");
}

TEST(ExpertDialer, UsesGrpcWhereThereIsNoLocalSocketOrNoneIsWanted) {
  Shard s;
  s.Connect();
  s.ExpectUp(1, "grpc");
  s.channel.reset();
  s.OpenLocal();
  ExpertDialer remote(false, &s.pool);
  RecordingSink sink;
  const auto channel = remote.Connect(s.address, Lane::kDecode, MakeHello(), &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.ups == 1; }));
  EXPECT_STREQ(channel->transport(), "grpc");
}

TEST(ExpertDialer, FallsBackToGrpcAndComesBackToTheLocalSocket) {
  Shard s;
  s.OpenLocal();
  s.Connect();
  s.ExpectUp(1, "local");
  s.local.reset();
  s.ExpectUp(2, "grpc");
  s.OpenLocal();
  s.grpc->BreakStreams();
  s.ExpectUp(3, "local");
  s.local->BreakStreams();
  s.ExpectUp(4, "local");
  EXPECT_EQ(s.sink.heard().downs, 3);
}

TEST(ExpertDialer, ASocketThatEndsStreamsBeforeTheirHandshakeIsSteppedOver) {
  Shard s;
  RawSocket hostile;  // accepts and never answers, then hangs up
  hostile.Listen(s.address);
  s.Connect();
  RawSocket stream = hostile.Accept();
  ASSERT_FALSE(stream.ReadFrame().empty());  // HELLO
  stream.Close();
  s.ExpectUp(1, "grpc");
}

TEST(ExpertDialer, FindsAShardThatStartsAfterIt) {
  Shard s;
  s.grpc.reset();
  s.Connect();
  s.grpc = s.ListenGrpc(s.address);
  s.ExpectUp(1, "grpc");
  // A shard that is away is no news: the sink hears of streams that were open.
  EXPECT_EQ(s.sink.heard().downs, 0);
}

TEST(ExpertDialer, AChannelToNobodyEndsAtOnce) {
  Shard s;
  s.grpc.reset();
  s.Connect();
  EXPECT_EQ(s.channel->Send(CallId{1}, MakeBody(&s.pool, {3}), CallOptions{Epoch{}, 1000, 0}).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_STREQ(s.channel->transport(), "");
  s.channel.reset();
}

TEST(ExpertDialer, BothDoorsOfAShardNumberTheirStreamsTogether) {
  Shard s;
  s.OpenLocal();
  s.Connect();
  s.ExpectUp(1, "local");
  ExpertDialer remote(false, &s.pool);
  RecordingSink sink;
  const auto channel = remote.Connect(s.address, Lane::kBulk, MakeHello(), &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& x) { return x.ups == 1; }));
  // Were the ids equal, the second stream would take the first one's answers.
  ASSERT_TRUE(channel->Send(CallId{1}, MakeBody(&s.pool, {4}), CallOptions{Epoch{}, 1000, 0}).ok());
  EXPECT_TRUE(sink.WaitFor([](const auto& x) { return x.results.size() == 1; }));
  s.ExpectUp(1, "local");
}

}  // namespace
}  // namespace consilium
