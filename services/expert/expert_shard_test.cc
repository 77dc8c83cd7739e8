// The shell with real threads, over all transports: right values, load, drain, broken streams.
#include "services/expert/expert_shard.h"

#include <gtest/gtest.h>

#include <random>

#include "common/net/channel_fixture.h"
#include "common/net/expert_dialer.h"
#include "common/net/grpc_server.h"
#include "common/net/inproc_channel.h"
#include "common/net/local_server.h"
#include "services/expert/shard_fixture.h"

namespace consilium {
namespace {

// A backend that waits at a gate, so that a test decides when a job ends.
class GatedBackend final : public ExpertBackend {
 public:
  uint32_t row_bytes_in() const override { return 8; }
  uint32_t row_bytes_out() const override { return 8; }
  absl::StatusOr<ExpertHandle> Load(const ExpertEntry& entry, ModelStore* store) override {
    return hash_.Load(entry, store);
  }
  void Drop(ExpertHandle expert) override { hash_.Drop(expert); }
  uint64_t loaded_bytes() const override { return hash_.loaded_bytes(); }
  void Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) override {
    {
      std::unique_lock lock(mutex_);
      ++started_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return open_; });
    }
    hash_.Run(job, std::move(done));
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void WaitStarted(int n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return started_ >= n; });
  }

 private:
  HashExpertBackend hash_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int started_ = 0;
};

// Many calls with random rows; checks every value.
void SendAndCheck(ExpertChannel* channel, RecordingSink* sink, BufferPool* pool, uint32_t seed, int calls) {
  ASSERT_TRUE(sink->WaitFor([](const auto& h) { return h.ups > h.downs; }));
  std::mt19937_64 rng(seed);
  std::map<uint64_t, std::vector<uint64_t>> expected;
  for (int i = 1; i <= calls; ++i) {
    std::vector<CoreFixture::Row> rows;
    for (uint64_t n = 1 + rng() % 5; n > 0; --n) {
      const auto a = static_cast<uint16_t>(rng() % 8);
      rows.push_back({rng(), {a, static_cast<uint16_t>((a + 1 + rng() % 7) % 8)}});
    }
    const auto body = CoreFixture::BodyIn(pool, static_cast<uint16_t>(rng() % 3), rows);
    expected[static_cast<uint64_t>(i)] = CoreFixture::Expected(*body, rows);
    ASSERT_TRUE(
        channel->Send(CallId{static_cast<uint64_t>(i)}, body, CallOptions{Epoch{}, 60'000'000, 0}).ok());
  }
  ASSERT_TRUE(sink->WaitFor([&](const auto& h) { return h.results.size() == static_cast<size_t>(calls); }));
  for (const auto& r : sink->heard().results) EXPECT_EQ(r.values, expected[r.call]) << "call " << r.call;
}

TEST(ExpertShard, AnswersRightlyInProcess) {
  BufferPool pool;
  HashShard hash(&pool);
  InprocListener listener(hash.shard.get());
  RecordingSink sink;
  InprocChannel channel(CoreFixture::Hello(), Lane::kDecode, &listener, &pool, &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  SendAndCheck(&channel, &sink, &pool, 1, 500);
  EXPECT_EQ(sink.heard().incarnation, 99u);
}

TEST(ExpertShard, AnswersRightlyOverGrpcOnBothLanesAtOnce) {
  BufferPool pool;
  HashShard hash(&pool);
  auto server = GrpcFrameServer::Start("127.0.0.1:0", 1, hash.shard.get(), &pool, nullptr);
  ASSERT_TRUE(server.ok()) << server.status();
  ExpertDialer dialer(false, &pool);
  RecordingSink decode_sink, bulk_sink;
  const auto decode = dialer.Connect((*server)->address(), Lane::kDecode, CoreFixture::Hello(), &decode_sink);
  const auto bulk = dialer.Connect((*server)->address(), Lane::kBulk, CoreFixture::Hello(), &bulk_sink);
  ASSERT_TRUE(decode_sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  ASSERT_TRUE(bulk_sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  std::thread other([&] { SendAndCheck(bulk.get(), &bulk_sink, &pool, 2, 300); });
  SendAndCheck(decode.get(), &decode_sink, &pool, 3, 300);
  other.join();
}

TEST(ExpertShard, AnswersRightlyOverBothDoorsAtOnce) {
  BufferPool pool;
  HashShard hash(&pool);
  auto server = GrpcFrameServer::Start("127.0.0.1:0", 1, hash.shard.get(), &pool, nullptr);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto local_server = LocalServer::Start((*server)->address(), hash.shard.get(), &pool);
  ASSERT_TRUE(local_server.ok()) << local_server.status();
  ExpertDialer near(true, &pool), far(false, &pool);
  RecordingSink local_sink, grpc_sink;
  const auto local = near.Connect((*server)->address(), Lane::kDecode, CoreFixture::Hello(), &local_sink);
  const auto grpc = far.Connect((*server)->address(), Lane::kDecode, CoreFixture::Hello(), &grpc_sink);
  std::thread other([&] { SendAndCheck(grpc.get(), &grpc_sink, &pool, 6, 300); });
  SendAndCheck(local.get(), &local_sink, &pool, 7, 300);
  other.join();
  EXPECT_STREQ(local->transport(), "local");
  EXPECT_STREQ(grpc->transport(), "grpc");
}

TEST(ExpertShard, FramesOfSeveralRoutersMeetInOneJob) {
  BufferPool pool;
  GatedBackend gate;
  HashShard hash(&pool, CoreFixture::Options(), &gate);
  InprocListener listener(hash.shard.get());
  RecordingSink a_sink, b_sink;
  InprocChannel a(CoreFixture::Hello(), Lane::kDecode, &listener, &pool, &a_sink);
  ASSERT_TRUE(a_sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  InprocChannel b(CoreFixture::Hello(), Lane::kDecode, &listener, &pool, &b_sink);
  ASSERT_TRUE(b_sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  const auto body = CoreFixture::BodyIn(&pool, 1, {{5, {2}}});
  const CallOptions options{Epoch{}, 60'000'000, 0};
  ASSERT_TRUE(a.Send(CallId{1}, body, options).ok());
  gate.WaitStarted(1);
  ASSERT_TRUE(a.Send(CallId{2}, body, options).ok());
  ASSERT_TRUE(b.Send(CallId{1}, body, options).ok());
  EXPECT_EQ(hash.shard->stats().queued_rows, 2u);
  gate.Open();
  ASSERT_TRUE(a_sink.WaitFor([](const auto& h) { return h.results.size() == 2; }));
  ASSERT_TRUE(b_sink.WaitFor([](const auto& h) { return h.results.size() == 1; }));
  EXPECT_EQ(hash.shard->stats().rows_done, 3u);
}

TEST(ExpertShard, HeartbeatsGoOnWhileAJobIsStuck) {
  BufferPool pool;
  GatedBackend gate;
  HashShard hash(&pool, CoreFixture::Options(), &gate);
  InprocListener listener(hash.shard.get());
  RecordingSink sink;
  InprocChannel channel(CoreFixture::Hello(), Lane::kDecode, &listener, &pool, &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  ASSERT_TRUE(
      channel.Send(CallId{1}, CoreFixture::BodyIn(&pool, 1, {{5, {2}}}), CallOptions{Epoch{}, 1'000'000, 0})
          .ok());
  EXPECT_TRUE(sink.WaitFor([](const auto& h) { return h.heartbeats >= 2; }));
  gate.Open();
  EXPECT_TRUE(sink.WaitFor([](const auto& h) { return h.results.size() == 1; }));
}

TEST(ExpertShard, DrainAnswersWhatIsQueuedAndRefusesTheRest) {
  BufferPool pool;
  GatedBackend gate;
  HashShard hash(&pool, CoreFixture::Options(), &gate);
  InprocListener listener(hash.shard.get());
  RecordingSink sink;
  InprocChannel channel(CoreFixture::Hello(), Lane::kDecode, &listener, &pool, &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  const auto body = CoreFixture::BodyIn(&pool, 1, {{5, {2}}});
  const CallOptions options{Epoch{}, 60'000'000, 0};
  ASSERT_TRUE(channel.Send(CallId{1}, body, options).ok());
  ASSERT_TRUE(channel.Send(CallId{2}, body, options).ok());
  EXPECT_FALSE(hash.shard->Drain(0));
  EXPECT_EQ(sink.heard().drains, 1);
  ASSERT_TRUE(channel.Send(CallId{3}, body, options).ok());
  gate.Open();
  EXPECT_TRUE(hash.shard->Drain(20'000));
  const auto heard = sink.heard();
  EXPECT_EQ(heard.results.size(), 2u);
  ASSERT_EQ(heard.rejects.size(), 1u);
  EXPECT_EQ(heard.rejects[0].code, frame::RejectCode::kDraining);
}

TEST(ExpertShard, ACorruptFrameOverGrpcClosesTheStreamAndItComesBack) {
  BufferPool pool;
  HashShard hash(&pool);
  auto server = GrpcFrameServer::Start("127.0.0.1:0", 1, hash.shard.get(), &pool, nullptr);
  ASSERT_TRUE(server.ok());
  ExpertDialer dialer(false, &pool);
  RecordingSink sink;
  const auto channel = dialer.Connect((*server)->address(), Lane::kDecode, CoreFixture::Hello(), &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  const auto body = CoreFixture::BodyIn(&pool, 1, {{5, {2}}});
  body->buffer().data()[frame::kHeaderBytes] ^= std::byte{1};  // a table byte: the sum does not fit
  ASSERT_TRUE(channel->Send(CallId{1}, body, CallOptions{Epoch{}, 60'000'000, 0}).ok());
  ASSERT_TRUE(sink.WaitFor([](const auto& h) { return h.ups == 2; }));
  EXPECT_EQ(sink.heard().down.code(), absl::StatusCode::kDataLoss);
  SendAndCheck(channel.get(), &sink, &pool, 4, 20);
}

TEST(ExpertShard, MetricsCountCallsRowsAndJobs) {
  BufferPool pool;
  Metrics metrics;
  HashShard hash(&pool, CoreFixture::Options(), nullptr, &metrics);
  InprocListener listener(hash.shard.get());
  RecordingSink sink;
  InprocChannel channel(CoreFixture::Hello(), Lane::kDecode, &listener, &pool, &sink);
  ASSERT_TRUE(sink.WaitFor([](const auto& h) { return h.ups == 1; }));
  SendAndCheck(&channel, &sink, &pool, 5, 30);
  const std::string text = metrics.Text();
  EXPECT_NE(text.find("consilium_expert_calls_total{outcome=\"result\"} 30"), std::string::npos) << text;
  EXPECT_NE(text.find("consilium_expert_experts_ready 24"), std::string::npos);
  EXPECT_NE(text.find("consilium_expert_expert_rows_total{"), std::string::npos);
}

}  // namespace
}  // namespace consilium
