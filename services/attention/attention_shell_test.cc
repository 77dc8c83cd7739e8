#include "services/attention/attention_shell.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "common/base/status.h"
#include "common/testing/hash_backend.h"
#include "consilium/attention/v1/attention.grpc.pb.h"
#include "services/attention/attention_lab_fixture.h"
#include "services/attention/attention_service.h"

namespace consilium {
namespace {

namespace pb = ::consilium::attention::v1;

// A shard that answers within Send, on the sender's thread.
class InstantChannel final : public ExpertChannel {
 public:
  InstantChannel(BufferPool* pool, Sink* sink) : pool_(pool), sink_(sink) {
    sink_->OnUp(1, 1, {1 << 30, 1 << 30});
  }
  absl::Status Send(CallId call, std::shared_ptr<const CallBody> body, const CallOptions& o) override {
    const WireFrame wire = body->Frame(call, o.epoch, o.budget_us, o.flags);
    frame::View view;
    if (absl::Status s = frame::Decode(wire, &view); !s.ok()) return s;
    sink_->OnResult(HashAnswer(call, view, pool_));
    return absl::OkStatus();
  }
  void Cancel(CallId) override {}

 private:
  BufferPool* const pool_;
  Sink* const sink_;
};

class Collector final : public AttentionShell::SessionSink {
 public:
  void OnEvents(SessionEvents events) override {
    std::lock_guard lock(mutex_);
    for (const auto& t : events.tokens) tokens_[t.request].push_back(t.token);
    ended_ += events.finishes.size() + events.errors.size();
    wake_.notify_all();
  }
  std::map<uint64_t, std::vector<TokenId>> WaitFor(size_t ended) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wake_.wait_for(lock, std::chrono::seconds(60), [&] { return ended_ >= ended; }));
    return tokens_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<uint64_t, std::vector<TokenId>> tokens_;
  size_t ended_ = 0;
};

SessionSubmit Submit(uint64_t request, uint32_t max_tokens) {
  SessionSubmit s;
  s.request = request;
  s.manifest = "m";
  for (size_t i = 0; i < 10 + request % 40; ++i)
    s.prompt.push_back(static_cast<TokenId>((request * 131 + i * 17) % 1000));
  s.sampling.seed = request;
  s.max_tokens = max_tokens;
  return s;
}

struct Worker {
  BufferPool pool;
  Metrics metrics;
  HashModel model;
  AttentionShell shell{&pool, &metrics};
  HashLayerBackend backend;
  Epoch acked;

  Worker()
      : model{.kv_blocks = 400},
        backend(model, &pool, [run = shell.run_compute()](uint64_t, std::function<void()> f) { run(f); }) {
    AttentionConfig config;
    config.shape = HashShape(model);
    config.manifest = "m";
    AttentionShell::Hooks hooks;
    hooks.connect = [this](const PlacementShard&, Lane, ExpertChannel::Sink* sink) {
      return std::make_unique<InstantChannel>(&pool, sink);
    };
    hooks.on_placement = [this](Epoch e) { acked = e; };
    shell.Start(config, &backend, std::move(hooks));
    std::vector<PlacementView::Entry> entries;
    for (uint16_t l = 1; l < model.layers; ++l) {
      for (uint16_t e = 0; e < model.experts; ++e) entries.push_back({LayerId(l), ExpertId(e), {ShardId(1)}});
    }
    shell.SetPlacement(std::make_shared<PlacementView>(Epoch::Make(0, 1), model.layers, model.experts,
                                                       std::vector<PlacementShard>{{ShardId(1), "s", "", 1}},
                                                       entries));
  }
  ~Worker() { shell.Stop(); }
};

TEST(AttentionShell, SessionsOfManyThreadsGetTheSameTokens) {
  Worker worker;
  std::vector<std::map<uint64_t, std::vector<TokenId>>> got(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < got.size(); ++t) {
    threads.emplace_back([&, t] {
      auto sink = std::make_shared<Collector>();
      const SessionId session = worker.shell.OpenSession(sink);
      for (uint64_t r = 1; r <= 8; ++r) worker.shell.Submit(session, Submit(r, 12));
      got[t] = sink->WaitFor(8);
      worker.shell.CloseSession(session);
    });
  }
  for (std::thread& t : threads) t.join();
  for (const auto& g : got) EXPECT_EQ(g, got[0]);
  EXPECT_EQ(got[0].size(), 8u);
  for (const auto& [request, tokens] : got[0]) EXPECT_EQ(tokens.size(), 12u);
  EXPECT_EQ(worker.acked, Epoch::Make(0, 1));
}

TEST(AttentionShell, DrainWaitsForTheLastRequestAndMetricsTellOfIt) {
  Worker worker;
  auto sink = std::make_shared<Collector>();
  const SessionId session = worker.shell.OpenSession(sink);
  for (uint64_t r = 1; r <= 5; ++r) worker.shell.Submit(session, Submit(r, 20));
  EXPECT_TRUE(worker.shell.Drain(60000));
  EXPECT_EQ(sink->WaitFor(5).size(), 5u);
  worker.shell.UpdateMetrics();
  const std::string text = worker.metrics.Text();
  for (const char* line :
       {"consilium_attention_requests_total{outcome=\"finished\"} 5", "vllm:num_requests_running 0",
        "consilium_attention_tokens_total{kind=\"generated\"} 100",
        "consilium_dispatch_requests_per_frame"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

TEST(AttentionShell, AClosedSessionEndsItsRequests) {
  Worker worker;
  auto sink = std::make_shared<Collector>();
  const SessionId session = worker.shell.OpenSession(sink);
  for (uint64_t r = 1; r <= 5; ++r) worker.shell.Submit(session, Submit(r, 400));
  worker.shell.CloseSession(session);
  EXPECT_TRUE(worker.shell.Drain(60000));
}

TEST(AttentionService, AGatewayStreamGetsWelcomeTokensAndErrors) {
  Worker worker;
  WorkerWelcome welcome;
  welcome.worker = "w";
  welcome.vocab = 1000;
  auto service = AttentionService::Start("127.0.0.1:0", welcome, &worker.shell);
  ASSERT_TRUE(service.ok()) << ToString(service.status());
  EXPECT_FALSE(AttentionService::Start((*service)->address(), welcome, &worker.shell).ok())
      << "a busy port is an error";
  auto stub =
      pb::Attention::NewStub(grpc::CreateChannel((*service)->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto stream = stub->Session(&context);
  pb::FromAttention in;
  ASSERT_TRUE(stream->Read(&in));
  EXPECT_EQ(in.welcome().worker(), "w");
  const SessionSubmit plain = Submit(3, 6);
  pb::ToAttention out;
  pb::Submit* s = out.mutable_submit();
  s->set_request(3);
  s->set_manifest("m");
  s->set_n(1);
  s->set_max_tokens(6);
  s->set_top_logprobs(2);
  for (TokenId t : plain.prompt) s->add_prompt(t);
  s->mutable_sampling()->set_seed(3);
  s->mutable_sampling()->set_temperature(1);
  s->mutable_sampling()->set_repetition_penalty(1);
  ASSERT_TRUE(stream->Write(out));
  s->set_request(4);
  s->set_n(0);
  ASSERT_TRUE(stream->Write(out));
  std::vector<TokenId> tokens;
  size_t finishes = 0, errors = 0;
  while (finishes + errors < 2 && stream->Read(&in)) {
    for (const auto& t : in.tokens()) {
      tokens.push_back(t.token());
      EXPECT_EQ(t.top_size(), 2);
    }
    finishes += static_cast<size_t>(in.finishes_size());
    for (const auto& e : in.errors())
      EXPECT_EQ(e.code(), static_cast<uint32_t>(grpc::StatusCode::INVALID_ARGUMENT));
    errors += static_cast<size_t>(in.errors_size());
  }
  EXPECT_EQ(finishes, 1u);
  EXPECT_EQ(errors, 1u);
  auto sink = std::make_shared<Collector>();
  worker.shell.Submit(worker.shell.OpenSession(sink), plain);
  EXPECT_EQ(sink->WaitFor(1).at(3), tokens);
  stream->WritesDone();
  context.TryCancel();
  stream->Finish();
}

}  // namespace
}  // namespace consilium
