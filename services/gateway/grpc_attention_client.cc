#include "services/gateway/grpc_attention_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "common/base/status.h"
#include "common/log/log.h"
#include "consilium/attention/v1/attention.grpc.pb.h"
#include "consilium/controller/v1/controller.grpc.pb.h"
#include "services/gateway/stream_router.h"

namespace consilium::gateway {
namespace {

namespace pb = consilium::attention::v1;
namespace ctl = consilium::controller::v1;
using Ms = std::chrono::milliseconds;

constexpr Ms kBackoffMin{50}, kBackoffMax{1000};
constexpr Ms kReportEvery{1000};            // to the controller: the lease
constexpr size_t kUnsentMax = 65536;        // messages a session may have unsent; beyond: UNAVAILABLE
constexpr int kMessageBytesMax = 64 << 20;  // a submission carries its whole prompt

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetMaxReceiveMessageSize(kMessageBytesMax);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

absl::Status FromGrpc(const grpc::Status& s) {
  const std::string text = s.error_message();
  return s.ok() ? Unavailable("the stream ended")
                : absl::Status(static_cast<absl::StatusCode>(s.error_code()), absl::string_view(text));
}

// One life of a bidirectional stream. Messages are written in order; OnMessage is called by one thread at a
// time.
template <class Out, class In>
class Stream final : public grpc::ClientBidiReactor<Out, In> {
 public:
  explicit Stream(std::function<void(In&)> on_message) : on_message_(std::move(on_message)) {}

  // `open`: starts the call of the stub with the context and this reactor.
  template <class Open>
  void Start(Open open) {
    open(&context_, this);
    this->AddHold();
    this->StartRead(&in_);
    this->StartCall();
  }
  absl::Status Write(Out message, size_t unsent_max) {
    std::lock_guard lock(mu_);
    if (broken_) return Unavailable("no session is open");
    if (queue_.size() >= unsent_max) return Unavailable("too many messages are unsent");
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) this->StartWrite(&queue_.front());
    return absl::OkStatus();
  }
  bool idle() {
    std::lock_guard lock(mu_);
    return queue_.empty();
  }
  void Cancel() { context_.TryCancel(); }
  // True: the stream has ended, by itself or within `wait`.
  template <class Stop>
  bool WaitDone(Ms wait, Stop stop) {
    std::unique_lock lock(mu_);
    changed_.wait_for(lock, wait, [&] { return done_ || stop(); });
    return done_;
  }
  void WaitDone() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return done_; });
  }
  void Wake() {
    std::lock_guard lock(mu_);
    changed_.notify_all();
  }
  absl::Status status() const { return FromGrpc(status_); }

  void OnReadDone(bool ok) override {
    if (!ok) return Break();
    on_message_(in_);
    this->StartRead(&in_);
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mu_);
    queue_.pop_front();
    if (!ok || broken_) {
      queue_.clear();
      return;
    }
    if (!queue_.empty()) this->StartWrite(&queue_.front());
  }
  void OnDone(const grpc::Status& status) override {
    std::lock_guard lock(mu_);
    status_ = status;
    broken_ = done_ = true;
    changed_.notify_all();
  }

 private:
  void Break() {
    {
      std::lock_guard lock(mu_);
      if (broken_) return;
      broken_ = true;  // no write starts after this
    }
    this->RemoveHold();
  }
  grpc::ClientContext context_;
  const std::function<void(In&)> on_message_;
  In in_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Out> queue_;  // the first is being written
  bool broken_ = false, done_ = false;
  grpc::Status status_;
};

// A thread that keeps a stream open: opens it, waits for its end, backs off, opens it again.
class Keeper {
 public:
  virtual ~Keeper() = default;

 protected:
  // One life of the stream; true: it worked, so that the backoff starts anew.
  virtual bool Live() = 0;
  virtual void Interrupt() = 0;
  void StartKeeping() {
    thread_ = std::thread([this] { Run(); });
  }
  void StopKeeping() {
    {
      std::lock_guard lock(mu_);
      stop_ = true;
    }
    changed_.notify_all();
    Interrupt();
    if (thread_.joinable()) thread_.join();
  }
  bool stopping() const { return stop_.load(); }

 private:
  void Run() {
    Ms backoff = kBackoffMin;
    while (!stop_) {
      if (Live()) backoff = kBackoffMin;
      std::unique_lock lock(mu_);
      changed_.wait_for(lock, backoff, [&] { return stop_.load(); });
      backoff = std::min(backoff * 2, kBackoffMax);
    }
  }
  std::mutex mu_;
  std::condition_variable changed_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

pb::ToAttention ToProto(const AttentionRequest& r) {
  pb::ToAttention out;
  pb::Submit& s = *out.mutable_submit();
  s.set_request(r.request);
  s.set_request_id(r.request_id);
  s.set_attempt(r.attempt);
  s.set_tenant(r.tenant);
  s.set_manifest(r.manifest);
  s.mutable_prompt()->Add(r.prompt.begin(), r.prompt.end());
  for (uint32_t c = 0; c < r.history.size(); ++c) {
    pb::ChoiceHistory& h = *s.add_history();
    h.set_choice(c);
    h.mutable_tokens()->Add(r.history[c].begin(), r.history[c].end());
  }
  pb::Sampling& p = *s.mutable_sampling();
  p.set_seed(r.sampling.seed);
  p.set_temperature(r.sampling.temperature);
  p.set_top_p(r.sampling.top_p);
  p.set_top_k(r.sampling.top_k);
  p.set_min_p(r.sampling.min_p);
  p.set_presence_penalty(r.sampling.presence_penalty);
  p.set_frequency_penalty(r.sampling.frequency_penalty);
  p.set_repetition_penalty(r.sampling.repetition_penalty);
  for (const LogitBias& b : r.sampling.logit_bias) {
    pb::LogitBias& bias = *p.add_logit_bias();
    bias.set_token(b.token);
    bias.set_bias(b.bias);
  }
  s.set_n(r.n);
  s.mutable_stop_ids()->Add(r.stop_ids.begin(), r.stop_ids.end());
  s.set_max_tokens(r.max_tokens);
  s.set_budget_ms(r.budget_ms);
  s.set_priority(r.priority);
  s.set_cache_salt(r.cache_salt);
  s.set_prompt_logprobs(r.prompt_logprobs);
  s.set_top_logprobs(r.top_logprobs);
  s.set_min_tokens(r.min_tokens);
  return out;
}

AttentionStep FromProto(const pb::FromAttention& m) {
  AttentionStep out;
  for (const auto& a : m.accepted()) out.accepted.push_back({a.request(), a.cached_tokens()});
  out.tokens.reserve(static_cast<size_t>(m.tokens_size()));
  for (const auto& t : m.tokens()) {
    TokenEvent event{t.request(), t.choice(), t.position(), t.token(), std::bit_cast<float>(t.logprob_bits()),
                     {}};
    for (const auto& top : t.top())
      event.top.push_back({top.token(), std::bit_cast<float>(top.logprob_bits())});
    out.tokens.push_back(std::move(event));
  }
  for (const auto& f : m.finishes()) {
    const FinishReason reason = f.reason() == pb::Finish::LENGTH      ? FinishReason::kLength
                                : f.reason() == pb::Finish::CANCELLED ? FinishReason::kCancelled
                                                                      : FinishReason::kStop;
    out.finishes.push_back({f.request(), f.choice(), reason});
  }
  for (const auto& e : m.errors())
    out.errors.push_back(
        {e.request(), static_cast<absl::StatusCode>(e.code()), e.text(), e.retry_after_ms()});
  if (m.has_load())
    out.load = WorkerLoad{m.load().running(), m.load().waiting(), m.load().kv_blocks_used(),
                          m.load().kv_blocks_total()};
  return out;
}

class GrpcAttentionClient final : public AttentionClient, Keeper {
 public:
  explicit GrpcAttentionClient(const std::string& address) : stub_(pb::Attention::NewStub(Dial(address))) {}
  ~GrpcAttentionClient() override { StopKeeping(); }

  void Start(AttentionSink* sink) override {
    sink_ = sink;
    StartKeeping();
  }
  absl::Status Submit(const AttentionRequest& request) override {
    const auto session = Current();
    if (session == nullptr) return Unavailable("no session is open");
    return session->Write(ToProto(request), kUnsentMax);
  }
  void Cancel(uint64_t request, std::optional<uint32_t> choice) override {
    const auto session = Current();
    if (session == nullptr) return;
    pb::ToAttention out;
    out.mutable_cancel()->set_request(request);
    out.mutable_cancel()->set_choice(choice ? static_cast<int32_t>(*choice) : -1);
    (void)session->Write(std::move(out), SIZE_MAX);  // a broken session has cancelled everything
  }

 private:
  using Session = Stream<pb::ToAttention, pb::FromAttention>;

  std::shared_ptr<Session> Current() {
    std::lock_guard lock(mu_);
    return welcomed_ ? session_ : nullptr;
  }
  void OnMessage(pb::FromAttention& m) {
    if (m.has_welcome()) {
      const auto& w = m.welcome();
      {
        std::lock_guard lock(mu_);
        welcomed_ = true;
      }
      sink_->OnWelcome({w.worker(), w.model().id(), w.model().manifest(), w.numerics().name(),
                        w.numerics().fingerprint(), w.context_tokens(), w.vocab()});
    }
    sink_->OnStep(FromProto(m));
  }
  bool Live() override {
    auto session = std::make_shared<Session>([this](pb::FromAttention& m) { OnMessage(m); });
    {
      std::lock_guard lock(mu_);
      session_ = session;  // shared with callers of Submit under way
    }
    session->Start(
        [&](grpc::ClientContext* context, Session* reactor) { stub_->async()->Session(context, reactor); });
    if (stopping()) session->Cancel();
    session->WaitDone();
    bool was_open = false;
    {
      std::lock_guard lock(mu_);
      was_open = std::exchange(welcomed_, false);
      session_ = nullptr;
    }
    if (was_open) sink_->OnDown(session->status());
    return was_open;
  }
  void Interrupt() override {
    std::lock_guard lock(mu_);
    if (session_) session_->Cancel();
  }

  const std::unique_ptr<pb::Attention::Stub> stub_;
  AttentionSink* sink_ = nullptr;
  std::mutex mu_;
  std::shared_ptr<Session> session_;
  bool welcomed_ = false;
};

}  // namespace

std::unique_ptr<AttentionClient> MakeGrpcAttentionClient(const std::string& address) {
  return std::make_unique<GrpcAttentionClient>(address);
}

struct WorkerDirectory::Impl final : Keeper {
  Impl(DirectoryOptions o, StreamRouter* r)
      : options(std::move(o)), router(r), incarnation(std::random_device{}()) {
    for (const std::string& address : options.attention)
      router->AddWorker(address, MakeGrpcAttentionClient(address));
    if (options.controller.empty()) return;
    stub = ctl::Controller::NewStub(Dial(options.controller));
    StartKeeping();
  }
  ~Impl() override { StopKeeping(); }

  using Session = Stream<ctl::GatewayReport, ctl::ClusterView>;
  bool Live() override {
    auto session = std::make_shared<Session>([this](ctl::ClusterView& view) {
      std::lock_guard lock(mu);
      latest = view;
      fresh = true;
      if (current) current->Wake();
    });
    {
      std::lock_guard lock(mu);
      current = session;  // shared with Interrupt
    }
    session->Start([&](grpc::ClientContext* context, Session* reactor) {
      stub->async()->AttachGateway(context, reactor);
    });
    if (stopping()) session->Cancel();
    bool worked = false;
    do {
      if (session->idle()) {
        ctl::GatewayReport report;
        report.set_name(options.gateway_name);
        report.set_incarnation(incarnation);
        (void)session->Write(std::move(report), kUnsentMax);  // a broken stream ends the loop
      }
      worked = Apply() || worked;
    } while (!session->WaitDone(kReportEvery, [&] { return fresh.load(); }));
    std::lock_guard lock(mu);
    current = nullptr;
    if (worked)
      log::Warn("controller lost; the last view stays",
                {{"controller", options.controller}, {"why", ToString(session->status())}});
    return worked;
  }
  void Interrupt() override {
    std::lock_guard lock(mu);
    if (current) current->Cancel();
  }
  // Brings the router to the latest view; true: there was a new one.
  bool Apply() {
    ctl::ClusterView view;
    bool news = false;
    {
      std::lock_guard lock(mu);
      view = latest;
      news = fresh.exchange(false);
    }
    if (!seen && !news) return false;
    seen = true;
    std::map<std::string, bool> wanted;  // address -> draining
    for (const auto& w : view.workers()) wanted[w.address()] = w.draining() || !w.ready();
    for (const std::string& key : router->workers()) {
      const bool fixed =
          std::find(options.attention.begin(), options.attention.end(), key) != options.attention.end();
      if (!fixed && !wanted.contains(key) && !router->IsUp(key)) router->RemoveWorker(key);
    }
    const auto known = router->workers();
    for (const auto& [address, draining] : wanted) {
      if (std::find(known.begin(), known.end(), address) == known.end())
        router->AddWorker(address, MakeGrpcAttentionClient(address));
      router->SetDraining(address, draining);
    }
    return news;
  }

  const DirectoryOptions options;
  StreamRouter* const router;
  const uint64_t incarnation;
  std::unique_ptr<ctl::Controller::Stub> stub;
  std::mutex mu;
  std::shared_ptr<Session> current;
  ctl::ClusterView latest;
  std::atomic<bool> fresh{false};
  bool seen = false;
};

WorkerDirectory::WorkerDirectory(DirectoryOptions options, StreamRouter* router)
    : impl_(std::make_unique<Impl>(std::move(options), router)) {}
WorkerDirectory::~WorkerDirectory() = default;

}  // namespace consilium::gateway
