#include "services/controller/controller_service.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/log/log.h"
#include "common/net/control_proto.h"
#include "consilium/controller/v1/controller.grpc.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::controller::v1;

// One thread that runs closures in order, and a tick when the core asked for one.
class Strand {
 public:
  Strand() = default;
  ~Strand() { Stop(); }
  void Start(std::function<MonoTime()> deadline, std::function<void()> tick) {
    thread_ =
        std::thread([this, deadline = std::move(deadline), tick = std::move(tick)] { Run(deadline, tick); });
  }
  void Post(std::function<void()> f) {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(f));
    wake_.notify_one();
  }
  size_t waiting() {
    std::lock_guard<std::mutex> lock(mutex_);
    return queue_.size();
  }
  // What was posted before still runs.
  void Stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      wake_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run(const std::function<MonoTime()>& deadline, const std::function<void()>& tick) {
    MonoTime ticked = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (!queue_.empty()) {
        const std::function<void()> f = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        f();
        lock.lock();
        continue;
      }
      if (stop_) return;
      // Leases are judged only when every report that came was seen (the queue is empty).
      const MonoTime now = NowUs(), at = std::max(deadline(), ticked + 1000);
      if (at <= now) {
        ticked = now;
        lock.unlock();
        tick();
        lock.lock();
      } else if (at == kNever) {
        wake_.wait(lock);
      } else {
        wake_.wait_for(lock, std::chrono::microseconds(at - now));
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>>
      queue_;  // at most one report a member, a few closures, kControlCallsMax admin calls
  bool stop_ = false;
  std::thread thread_;
};

class Shell;

// One member's stream. Lives until OnDone; the strand holds a weak view of it by its id.
template <class Req, class Resp>
class Peer final : public grpc::ServerBidiReactor<Req, Resp> {
 public:
  using Response = Resp;
  Peer(Shell* service, PeerId id) : service_(service), id_(id) {}
  void Begin(std::shared_ptr<Peer> self) {
    self_ = std::move(self);
    this->StartSendInitialMetadata();  // tells the member that the controller answers
    this->StartRead(&in_);
  }
  void ReadMore() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!finished_) this->StartRead(&in_);
  }
  void Send(Resp message) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_ || closing_) return;
    if (queue_.size() >= kControlWritesMax) {
      FinishLocked(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the member does not read"));
      return;
    }
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) this->StartWrite(&queue_.front());
  }
  // After what was sent.
  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    if (queue_.empty()) FinishLocked(grpc::Status::OK);
  }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.pop_front();
    if (!ok) {
      FinishLocked(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream broke"));
    } else if (!queue_.empty()) {
      if (!finished_) this->StartWrite(&queue_.front());
    } else if (closing_) {
      FinishLocked(grpc::Status::OK);
    }
  }
  void OnCancel() override {
    std::lock_guard<std::mutex> lock(mutex_);
    FinishLocked(grpc::Status::CANCELLED);
  }
  void OnDone() override;

 private:
  void FinishLocked(const grpc::Status& status) {
    if (finished_) return;
    finished_ = true;
    this->Finish(status);
  }

  Shell* service_;
  const PeerId id_;
  Req in_;
  std::shared_ptr<Peer> self_;  // kept by gRPC's use of it, until OnDone
  std::mutex mutex_;
  std::deque<Resp> queue_;  // the front is being written
  bool finished_ = false, closing_ = false;
};

using ShardPeer = Peer<pb::ShardReport, pb::ShardCommand>;
using RouterPeer = Peer<pb::RouterReport, pb::PlacementUpdate>;
using GatewayPeer = Peer<pb::GatewayReport, pb::ClusterView>;

class Shell final : public ControllerService {
 public:
  Shell(const ControllerServiceOptions& options, Metrics* metrics)
      : state_dir_(options.state_dir), metrics_(metrics) {}
  ~Shell() override {
    stopping_ = true;
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
      server_->Wait();
    }
    strand_.Stop();
  }

  absl::Status Init(const ControllerServiceOptions& options);
  std::string address() const override { return host_ + ":" + std::to_string(port_); }
  void UpdateMetrics() override;

  // From gRPC threads.
  void OnReport(PeerId id, const pb::ShardReport& in) {
    Event(id, &shards_, controller_event::Shard{id, control::FromProto(in)});
  }
  void OnReport(PeerId id, const pb::RouterReport& in) {
    Event(id, &routers_, controller_event::Router{id, control::FromProto(in)});
  }
  void OnReport(PeerId id, const pb::GatewayReport& in) {
    Event(id, &gateways_, controller_event::Gateway{id, control::FromProto(in)});
  }
  void OnPeerDone(PeerId id) {
    strand_.Post([this, id] {
      shards_.erase(id);
      routers_.erase(id);
      gateways_.erase(id);
      --open_streams_;
      // Streams that end because the controller stops are not lost members.
      if (!stopping_) Handle(controller_event::Closed{id});
    });
  }

 private:
  template <class P>
  using Peers = std::map<PeerId, std::shared_ptr<P>>;

  class ControllerRpc final : public pb::Controller::CallbackService {
   public:
    explicit ControllerRpc(Shell* s) : s_(s) {}
    grpc::ServerBidiReactor<pb::ShardReport, pb::ShardCommand>* AttachShard(
        grpc::CallbackServerContext*) override {
      return s_->Open(&s_->shards_);
    }
    grpc::ServerBidiReactor<pb::RouterReport, pb::PlacementUpdate>* AttachRouter(
        grpc::CallbackServerContext*) override {
      return s_->Open(&s_->routers_);
    }
    grpc::ServerBidiReactor<pb::GatewayReport, pb::ClusterView>* AttachGateway(
        grpc::CallbackServerContext*) override {
      return s_->Open(&s_->gateways_);
    }

   private:
    Shell* s_;
  };

  class AdminRpc final : public pb::Admin::CallbackService {
   public:
    explicit AdminRpc(Shell* s) : s_(s) {}
    grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                           const pb::GetPlacementRequest*, pb::Placement* out) override {
      return s_->Ask(context, [this, out] { s_->FillPlacement(out); });
    }
    grpc::ServerUnaryReactor* GetMembers(grpc::CallbackServerContext* context, const pb::GetMembersRequest*,
                                         pb::Members* out) override {
      return s_->Ask(context, [this, out] {
        for (const ControllerMember& m : s_->core_->Members()) {
          auto* member = out->add_members();
          member->set_role(m.role);
          member->set_name(m.name);
          member->set_address(m.address);
          member->set_state(m.state);
        }
      });
    }

   private:
    Shell* s_;
  };

  template <class P>
  P* Open(Peers<P>* peers) {
    const PeerId id = next_peer_++;
    auto peer = std::make_shared<P>(this, id);
    P* raw = peer.get();
    const bool full = ++open_streams_ > kControlPeersMax;
    strand_.Post([peers, id, peer] { (*peers)[id] = peer; });
    raw->Begin(std::move(peer));
    if (full) raw->Close();
    return raw;
  }

  // The strand answers from the core's state, then the call ends.
  grpc::ServerUnaryReactor* Ask(grpc::CallbackServerContext* context, std::function<void()> fill) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (strand_.waiting() > kControlCallsMax) {
      reactor->Finish(
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many calls wait for the controller"));
      return reactor;
    }
    strand_.Post([reactor, fill = std::move(fill)] {
      fill();
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  template <class P>
  void Event(PeerId id, Peers<P>* peers, ControllerEvent event) {
    strand_.Post([this, id, peers, event = std::move(event)] {
      Handle(event);
      const auto peer = peers->find(id);
      if (peer != peers->end()) peer->second->ReadMore();
    });
  }

  // On the strand from here on.
  void Handle(const ControllerEvent& event) {
    std::vector<ControllerAction> actions;
    core_->Handle(NowUs(), event, &actions);
    for (const ControllerAction& action : actions) {
      std::visit([this](const auto& a) { Carry(a); }, action);
    }
    std::lock_guard<std::mutex> lock(stats_mutex_);
    stats_ = core_->stats();
    epoch_ = core_->epoch();
  }
  template <class P, class Message>
  void SendTo(Peers<P>* peers, PeerId id, const Message& message) {
    const auto peer = peers->find(id);
    if (peer == peers->end()) return;
    typename P::Response out;
    control::ToProto(message, &out);
    peer->second->Send(std::move(out));
  }
  void Carry(const controller_action::ToShard& a) { SendTo(&shards_, a.peer, a.command); }
  void Carry(const controller_action::ToRouter& a) { SendTo(&routers_, a.peer, a.update); }
  void Carry(const controller_action::ToGateway& a) { SendTo(&gateways_, a.peer, a.view); }
  void Carry(const controller_action::Close& a) {
    if (const auto peer = shards_.find(a.peer); peer != shards_.end()) peer->second->Close();
    if (const auto peer = routers_.find(a.peer); peer != routers_.end()) peer->second->Close();
    if (const auto peer = gateways_.find(a.peer); peer != gateways_.end()) peer->second->Close();
  }
  void Carry(const controller_action::Persist& a) {
    if (state_dir_.empty()) return;
    // A full disk must not stop the cluster: a lost term is learnt again from the routers.
    const absl::Status status = WriteControllerState(state_dir_, {a.term, a.members});
    if (!status.ok()) log::Error("state was not saved", {{"error", Message(status)}});
  }
  void Carry(const controller_action::Note& a) {
    log::Write(a.warning ? log::Level::kWarn : log::Level::kInfo, a.text, {});
  }
  void FillPlacement(pb::Placement* out) const {
    pb::PlacementUpdate update;
    control::ToProto(core_->Placement(), &update);
    out->set_epoch(update.epoch());
    out->mutable_shards()->Swap(update.mutable_shards());
    out->mutable_experts()->Swap(update.mutable_experts());
    for (const control::ExpertKey& key : core_->Uncovered()) {
      auto* uncovered = out->add_uncovered();
      uncovered->set_layer(key.layer.value);
      uncovered->set_expert(key.expert.value);
    }
  }

  const std::string state_dir_;
  Metrics* metrics_;
  std::string host_;
  int port_ = 0;
  std::unique_ptr<ControllerCore> core_;  // strand only, as the maps
  Peers<ShardPeer> shards_;
  Peers<RouterPeer> routers_;
  Peers<GatewayPeer> gateways_;
  std::atomic<PeerId> next_peer_{1};
  std::atomic<uint32_t> open_streams_{0};
  std::atomic<bool> stopping_{false};
  std::mutex stats_mutex_;  // of the next four
  ControllerStats stats_, counted_;
  Epoch epoch_;
  ControllerRpc controller_rpc_{this};
  AdminRpc admin_rpc_{this};
  Strand strand_;
  std::unique_ptr<grpc::Server> server_;
};

template <class Req, class Resp>
void Peer<Req, Resp>::OnReadDone(bool ok) {
  if (ok) {
    service_->OnReport(id_, in_);
    return;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  FinishLocked(grpc::Status::OK);
}

template <class Req, class Resp>
void Peer<Req, Resp>::OnDone() {
  service_->OnPeerDone(id_);
  self_.reset();
}

// Why an address cannot be bound, in the system's words.
std::string BindError(const HostPort& at) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  if (const int failed = getaddrinfo(at.host.c_str(), std::to_string(at.port).c_str(), &hints, &found);
      failed != 0) {
    return gai_strerror(failed);
  }
  const int fd = socket(found->ai_family, found->ai_socktype, 0);
  const bool bound = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 1) == 0;
  const std::string text = bound ? "gRPC could not start" : std::strerror(errno);
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return text;
}

absl::Status Shell::Init(const ControllerServiceOptions& options) {
  HostPort at;
  if (!ParseHostPort(options.listen, &at)) {
    return InvalidArgument("--listen: host:port expected, got '" + options.listen + "'");
  }
  host_ = at.host;
  ControllerOptions core = options.core;
  if (!state_dir_.empty()) {
    ASSIGN_OR_RETURN(ControllerState state, ReadControllerState(state_dir_));
    ++state.term;
    RETURN_IF_ERROR(WriteControllerState(state_dir_, state));
    core.term = state.term;
    core.known_members = state.members;
  }
  core_ = std::make_unique<ControllerCore>(std::move(core));
  strand_.Start([this] { return core_->next_deadline(); }, [this] { Handle(controller_event::Tick{}); });

  gpr_set_log_function([](gpr_log_func_args* line) {  // our log says what matters
    log::Debug(line->message, {{"from", "grpc"}});
  });
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second controller on the port must fail
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&controller_rpc_);
  builder.RegisterService(&admin_rpc_);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0)
    return Unavailable("cannot listen on " + options.listen + ": " + BindError(at));
  return absl::OkStatus();
}

void Shell::UpdateMetrics() {
  std::lock_guard<std::mutex> lock(stats_mutex_);
  const auto members = [&](const char* role, uint32_t count) {
    metrics_->Gauge("consilium_controller_members", "Attached members.", {{"role", role}}).Set(count);
  };
  members("expert", stats_.shards);
  members("attention", stats_.routers);
  members("gateway", stats_.gateways);
  const auto experts = [&](const char* state, uint64_t count) {
    metrics_
        ->Gauge("consilium_controller_experts", "Experts with (covered) and without a ready replica.",
                {{"state", state}})
        .Set(static_cast<double>(count));
  };
  experts("covered", stats_.covered);
  experts("uncovered", stats_.uncovered);
  metrics_->Gauge("consilium_controller_epoch", "Published placement epoch (term * 2^40 + sequence).")
      .Set(static_cast<double>(epoch_.value));
  metrics_->Gauge("consilium_controller_ops_outstanding", "LOAD and DROP commands without an answer.")
      .Set(static_cast<double>(stats_.ops_outstanding));
  metrics_->Counter("consilium_controller_moves_total", "Expert copies ordered to load.")
      .Increment(static_cast<double>(stats_.moves - counted_.moves));
  metrics_->Counter("consilium_controller_replans_total", "Plans made.")
      .Increment(static_cast<double>(stats_.replans - counted_.replans));
  metrics_
      ->Counter("consilium_controller_refused_total", "Members refused (model, class, fingerprint or name).")
      .Increment(static_cast<double>(stats_.refused - counted_.refused));
  counted_ = stats_;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ControllerService>> ControllerService::Start(
    const ControllerServiceOptions& options, Metrics* metrics) {
  auto service = std::make_unique<Shell>(options, metrics);
  RETURN_IF_ERROR(service->Init(options));
  return std::unique_ptr<ControllerService>(std::move(service));
}

}  // namespace consilium
