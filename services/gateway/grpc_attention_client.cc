#include "services/gateway/grpc_attention_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "common/base/status.h"
#include "common/session/session_proto.h"
#include "consilium/attention/v1/attention.grpc.pb.h"

namespace consilium::gateway {
namespace {

namespace pb = consilium::attention::v1;
using Ms = std::chrono::milliseconds;

constexpr Ms kBackoffMin{50}, kBackoffMax{1000};
constexpr size_t kUnsentMax = 65536;  // messages a session may have unsent; beyond: UNAVAILABLE
// A worker that is frozen, or whose host is gone, answers no ping: it is lost after at most the sum of both.
// Attention workers take a ping a second (attention_service.cc).
constexpr int kKeepaliveMs = 8000, kKeepaliveTimeoutMs = 5000;
constexpr int kMessageBytesMax = 64 << 20;  // a submission carries its whole prompt

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // a session may be silent for hours
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

class GrpcAttentionClient final : public AttentionClient, Keeper {
 public:
  explicit GrpcAttentionClient(const std::string& address) : stub_(pb::Attention::NewStub(Dial(address))) {}
  ~GrpcAttentionClient() override { StopKeeping(); }

  void Start(AttentionSink* sink) override {
    sink_ = sink;
    StartKeeping();
  }
  absl::Status Submit(const SessionSubmit& request) override {
    const auto session = Current();
    if (session == nullptr) return Unavailable("no session is open");
    pb::ToAttention out;
    ToProto(request, out.mutable_submit());
    return session->Write(std::move(out), kUnsentMax);
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
      {
        std::lock_guard lock(mu_);
        welcomed_ = true;
      }
      sink_->OnWelcome(FromProto(m.welcome()));
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

}  // namespace consilium::gateway
