// The attachments over gRPC's callback API. One thread per attachment owns the stream: gRPC's callbacks only
// set flags and wake it, so sink calls are in order and none comes after the destructor. At most one received
// message waits: the next read starts when the sink has seen the last.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "common/base/status.h"
#include "common/net/control_client.h"
#include "common/net/control_proto.h"
#include "common/net/placement_fold.h"
#include "consilium/controller/v1/controller.grpc.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::controller::v1;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr uint32_t kReportMsDefault = 500;  // until the controller told its lease

std::shared_ptr<grpc::Channel> Dial(const ControlClientOptions& options) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(options.backoff_min_ms));
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);  // time for one connect
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(options.backoff_max_ms));
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);  // a controller whose host is gone
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  args.SetMaxReceiveMessageSize(64 << 20);  // a snapshot of 1M experts
  return grpc::CreateCustomChannel(options.controller, grpc::InsecureChannelCredentials(), args);
}

template <class Req, class Resp>
class Attachment {
 public:
  Attachment(const ControlClientOptions& options, ControlSink* sink)
      : options_(options), control_sink_(sink), stub_(pb::Controller::NewStub(Dial(options))) {}
  virtual ~Attachment() = default;

 protected:
  class Reactor : public grpc::ClientBidiReactor<Req, Resp> {
   public:
    explicit Reactor(Attachment* owner) : owner_(owner) {}
    void OnReadInitialMetadataDone(bool ok) override {
      owner_->Note([&] { up = up || ok; });
    }
    void OnReadDone(bool ok) override {
      owner_->Note([&] {
        if (ok) {
          up = has_message = true;
        } else {
          broken = true;
        }
      });
    }
    void OnWriteDone(bool ok) override {
      owner_->Note([&] {
        writing = false;
        if (!ok) broken = true;
      });
    }
    void OnDone(const grpc::Status& s) override {
      owner_->Note([&] {
        done = true;
        text = s.error_message();
      });
    }

    grpc::ClientContext context;
    Resp in;
    Req out;
    // Below: under owner's mutex.
    bool up = false, has_message = false, writing = false, broken = false, done = false;
    std::string text;

   private:
    Attachment* owner_;
  };

  // For the derived class, called on the thread. MakeReport without the lock; Handle gives an error to end
  // the stream.
  virtual void Start(Reactor* reactor) = 0;
  virtual void MakeReport(bool first, Req* out) = 0;
  virtual absl::Status Handle(const Resp& message) = 0;

  void StartThread() {
    thread_ = std::thread([this] { Run(); });
  }
  // By the derived destructor, before its members go.
  void StopThread() {
    Note([&] { stop_ = true; });
    thread_.join();
  }
  // Something to report now. Under or without the lock of the derived class.
  void Wake() {
    Note([&] { report_due_ = true; });
  }
  void SetLease(uint32_t lease_ms) {
    if (lease_ms > 0) report_ms_ = std::max<uint32_t>(lease_ms / 3, 10);
  }
  pb::Controller::Stub* stub() { return stub_.get(); }

 private:
  template <class F>
  void Note(F&& change) {
    std::lock_guard<std::mutex> lock(mutex_);
    change();
    wake_.notify_one();
  }

  void Run() {
    uint32_t backoff_ms = options_.backoff_min_ms;
    bool told_down = false;
    std::string told_text;
    for (;;) {
      bool was_up = false;
      const absl::Status status = Session(&was_up);
      if (was_up) backoff_ms = options_.backoff_min_ms;
      const bool refused = status.code() == absl::StatusCode::kFailedPrecondition;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (stop_) return;
      }
      // Once per lost stream; a refusal also when its reason changes.
      const std::string text = refused ? Message(status) : "";
      if (!told_down || (was_up && !refused) || text != told_text) control_sink_->OnDown(status);
      told_down = true;
      told_text = text;
      if (refused) backoff_ms = options_.backoff_max_ms;
      std::unique_lock<std::mutex> lock(mutex_);
      if (wake_.wait_for(lock, milliseconds(backoff_ms), [&] { return stop_; })) return;
      backoff_ms = std::min(backoff_ms * 2, options_.backoff_max_ms);
    }
  }

  // One stream from its start to its end.
  absl::Status Session(bool* was_up) {
    Reactor reactor(this);
    MakeReport(true, &reactor.out);
    Start(&reactor);
    reactor.AddHold();  // reads and writes start on this thread
    reactor.writing = true;
    reactor.StartRead(&reactor.in);
    reactor.StartWrite(&reactor.out);
    reactor.StartCall();
    absl::Status ended;
    auto next_report = Clock::now() + milliseconds(report_ms_);
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_ && !reactor.broken && ended.ok()) {
      if (reactor.up && !*was_up) {
        *was_up = true;
        lock.unlock();
        control_sink_->OnUp();
        lock.lock();
      } else if (reactor.has_message) {
        reactor.has_message = false;
        lock.unlock();
        ended = Handle(reactor.in);
        if (ended.ok()) reactor.StartRead(&reactor.in);
        lock.lock();
      } else if (!reactor.writing && (report_due_ || Clock::now() >= next_report)) {
        report_due_ = false;
        reactor.writing = true;
        lock.unlock();
        reactor.out.Clear();
        MakeReport(false, &reactor.out);
        next_report = Clock::now() + milliseconds(report_ms_);
        reactor.StartWrite(&reactor.out);
        lock.lock();
      } else if (reactor.writing) {
        wake_.wait(lock);
      } else {
        wake_.wait_until(lock, next_report);
      }
    }
    lock.unlock();
    reactor.context.TryCancel();
    reactor.RemoveHold();
    lock.lock();
    wake_.wait(lock, [&] { return reactor.done; });
    lock.unlock();
    if (!ended.ok()) return ended;
    return Unavailable("controller " + options_.controller + ": " +
                       (reactor.text.empty() || reactor.text == "CANCELLED" ? std::string("the stream ended")
                                                                            : reactor.text));
  }

  const ControlClientOptions options_;
  ControlSink* control_sink_;
  std::unique_ptr<pb::Controller::Stub> stub_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false, report_due_ = false;  // under mutex_
  uint32_t report_ms_ = kReportMsDefault;   // thread only
  std::thread thread_;
};

class GrpcShardAttachment final : public ShardAttachment,
                                  private Attachment<pb::ShardReport, pb::ShardCommand> {
 public:
  GrpcShardAttachment(const ControlClientOptions& options, const control::MemberIdentity& who,
                      std::vector<control::MoeLayer> layers, uint64_t capacity_bytes, Sink* sink)
      : Attachment(options, sink),
        sink_(sink),
        who_(who),
        layers_(std::move(layers)),
        capacity_bytes_(capacity_bytes) {
    StartThread();
  }
  ~GrpcShardAttachment() override { StopThread(); }

  void Report(const std::vector<control::HostedExpert>& changed,
              const std::vector<control::OpResult>& results) override {
    {
      std::lock_guard<std::mutex> lock(state_mutex_);
      for (const control::HostedExpert& hosted : changed) {
        const control::ExpertKey key{hosted.layer, hosted.expert};
        if (hosted.state == control::HostedState::kAbsent) {
          states_.erase(key);
        } else {
          states_[key] = hosted.state;
        }
        changed_.insert(key);
      }
      results_.insert(results_.end(), results.begin(), results.end());
    }
    Wake();
  }
  void SetLoad(double rows_per_s) override {
    std::lock_guard<std::mutex> lock(state_mutex_);
    load_ = rows_per_s;
  }

 private:
  void Start(Reactor* reactor) override {
    new_stream_ = true;
    stub()->async()->AttachShard(&reactor->context, reactor);
  }
  void MakeReport(bool first, pb::ShardReport* out) override {
    control::ShardReport report;
    report.who = who_;
    report.capacity_bytes = capacity_bytes_;
    report.full = first;
    report.last_shard_id = shard_id_.value;
    if (first) report.layers = layers_;
    {
      std::lock_guard<std::mutex> lock(state_mutex_);
      report.load_rows_per_s = load_;
      if (first) {
        for (const auto& [key, state] : states_) report.experts.push_back({key.layer, key.expert, state});
        results_.clear();  // of ops that ended with the last stream
      } else {
        for (const control::ExpertKey& key : changed_) {
          const auto state = states_.find(key);
          report.experts.push_back({key.layer, key.expert,
                                    state == states_.end() ? control::HostedState::kAbsent : state->second});
        }
        report.results = std::exchange(results_, {});
      }
      changed_.clear();
    }
    control::ToProto(report, out);
  }
  absl::Status Handle(const pb::ShardCommand& message) override {
    const control::ShardCommand command = control::FromProto(message);
    if (!command.refused.empty()) return FailedPrecondition(command.refused);
    SetLease(command.lease_ms);
    if (new_stream_ || command.shard_id != shard_id_) {
      new_stream_ = false;
      shard_id_ = command.shard_id;
      sink_->OnShardId(shard_id_);
    }
    if (command.kind != control::CommandKind::kNone) sink_->OnCommand(command);
    return absl::OkStatus();
  }

  Sink* sink_;
  const control::MemberIdentity who_;
  const std::vector<control::MoeLayer> layers_;
  const uint64_t capacity_bytes_;
  ShardId shard_id_;  // thread only, as new_stream_
  bool new_stream_ = false;
  std::mutex state_mutex_;                                     // of all below
  std::map<control::ExpertKey, control::HostedState> states_;  // not absent
  std::set<control::ExpertKey> changed_;
  std::vector<control::OpResult> results_;
  double load_ = 0;
};

class GrpcRouterAttachment final : public RouterAttachment,
                                   private Attachment<pb::RouterReport, pb::PlacementUpdate> {
 public:
  GrpcRouterAttachment(const ControlClientOptions& options, const control::MemberIdentity& who, Sink* sink)
      : Attachment(options, sink), sink_(sink) {
    report_.who = who;
    StartThread();
  }
  ~GrpcRouterAttachment() override { StopThread(); }

  void Ack(Epoch epoch) override {
    Change([&] { report_.acked_epoch = std::max(report_.acked_epoch, epoch); });
  }
  void SetReady(bool ready) override {
    Change([&] { report_.ready = ready; });
  }
  void SetDraining() override {
    Change([&] { report_.draining = true; });
  }
  void SetLoads(std::vector<control::ExpertLoad> loads) override {
    std::lock_guard<std::mutex> lock(state_mutex_);
    report_.loads = std::move(loads);
  }

 private:
  template <class F>
  void Change(F&& change) {
    {
      std::lock_guard<std::mutex> lock(state_mutex_);
      change();
    }
    Wake();
  }
  void Start(Reactor* reactor) override { stub()->async()->AttachRouter(&reactor->context, reactor); }
  void MakeReport(bool, pb::RouterReport* out) override {
    control::RouterReport report;
    {
      std::lock_guard<std::mutex> lock(state_mutex_);
      report = report_;
      report_.loads.clear();  // told once
    }
    if (wants_snapshot_) report.acked_epoch = Epoch{};
    control::ToProto(report, out);
  }
  absl::Status Handle(const pb::PlacementUpdate& message) override {
    const control::PlacementUpdate update = control::FromProto(message);
    if (!update.refused.empty()) return FailedPrecondition(update.refused);
    SetLease(update.lease_ms);
    if (update.epoch.value == 0) return absl::OkStatus();  // a welcome
    if (wants_snapshot_ && update.base_epoch.value == 0) {
      wants_snapshot_ = false;
      Wake();
    }
    auto view = fold_.Apply(update);
    if (!view.ok()) {  // attach again as one who has nothing
      wants_snapshot_ = true;
      return Unavailable(Message(view.status()));
    }
    if (*view != nullptr) sink_->OnPlacement(*view);
    return absl::OkStatus();
  }

  Sink* sink_;
  PlacementFold fold_;  // thread only, as wants_snapshot_
  bool wants_snapshot_ = false;
  std::mutex state_mutex_;
  control::RouterReport report_;  // under state_mutex_
};

class GrpcGatewayAttachment final : public GatewayAttachment,
                                    private Attachment<pb::GatewayReport, pb::ClusterView> {
 public:
  GrpcGatewayAttachment(const ControlClientOptions& options, std::string_view name, uint64_t incarnation,
                        Sink* sink)
      : Attachment(options, sink), sink_(sink), report_{std::string(name), incarnation} {
    StartThread();
  }
  ~GrpcGatewayAttachment() override { StopThread(); }

 private:
  void Start(Reactor* reactor) override { stub()->async()->AttachGateway(&reactor->context, reactor); }
  void MakeReport(bool, pb::GatewayReport* out) override { control::ToProto(report_, out); }
  absl::Status Handle(const pb::ClusterView& message) override {
    sink_->OnCluster(control::FromProto(message));
    return absl::OkStatus();
  }

  Sink* sink_;
  const control::GatewayReport report_;
};

}  // namespace

std::unique_ptr<ShardAttachment> AttachShard(const ControlClientOptions& options,
                                             const control::MemberIdentity& who,
                                             std::vector<control::MoeLayer> layers, uint64_t capacity_bytes,
                                             ShardAttachment::Sink* sink) {
  return std::make_unique<GrpcShardAttachment>(options, who, std::move(layers), capacity_bytes, sink);
}

std::unique_ptr<RouterAttachment> AttachRouter(const ControlClientOptions& options,
                                               const control::MemberIdentity& who,
                                               RouterAttachment::Sink* sink) {
  return std::make_unique<GrpcRouterAttachment>(options, who, sink);
}

std::unique_ptr<GatewayAttachment> AttachGateway(const ControlClientOptions& options, std::string_view name,
                                                 uint64_t incarnation, GatewayAttachment::Sink* sink) {
  return std::make_unique<GrpcGatewayAttachment>(options, name, incarnation, sink);
}

absl::StatusOr<std::vector<MemberInfo>> ListMembers(const std::string& controller, uint32_t timeout_ms) {
  ControlClientOptions options;
  options.controller = controller;
  const auto stub = pb::Admin::NewStub(Dial(options));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(timeout_ms));
  pb::Members answer;
  const grpc::Status status = stub->GetMembers(&context, pb::GetMembersRequest(), &answer);
  if (!status.ok()) return Unavailable("controller " + controller + ": " + status.error_message());
  std::vector<MemberInfo> members;
  for (const auto& m : answer.members()) members.push_back({m.role(), m.name(), m.address(), m.state()});
  return members;
}

}  // namespace consilium
