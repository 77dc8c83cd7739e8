// The same cores and shells as the services, joined without sockets: gateway -> InprocAttentionClient ->
// AttentionWorker -> InprocChannel -> ExpertHost. The placement is the controller's planner, asked once.
#include "services/cli/inprocess.h"

#include <unistd.h>

#include <condition_variable>
#include <ctime>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/metrics/admin_server.h"
#include "common/net/inproc_channel.h"
#include "common/placement/planner.h"
#include "services/attention/attention_worker.h"
#include "services/expert/expert_host.h"
#include "services/gateway/gateway.h"

namespace consilium {
namespace {

constexpr uint32_t kGraceMs = 5000;

// The gateway's session with a worker of this process. Events come on the worker's strand, which may run
// inside Submit; a thread of its own hands them on, as the client's contract wants.
class InprocAttentionClient final : public gateway::AttentionClient {
 public:
  explicit InprocAttentionClient(AttentionWorker* worker)
      : worker_(worker), inbox_(std::make_shared<Inbox>()) {}
  ~InprocAttentionClient() override {
    worker_->shell()->CloseSession(session_);
    inbox_->Close();
    if (thread_.joinable()) thread_.join();
  }

  void Start(gateway::AttentionSink* sink) override {
    session_ = worker_->shell()->OpenSession(inbox_);
    thread_ = std::thread([this, sink] {
      sink->OnWelcome(worker_->welcome());
      SessionEvents events;
      while (inbox_->Take(&events)) sink->OnStep(std::move(events));
    });
  }
  absl::Status Submit(const SessionSubmit& submit) override {
    worker_->shell()->Submit(session_, submit);
    return absl::OkStatus();
  }
  void Cancel(uint64_t request, std::optional<uint32_t> choice) override {
    worker_->shell()->Cancel(session_, request, choice ? static_cast<int32_t>(*choice) : -1);
  }

 private:
  // Bounded by the tokens of the requests under way. Shared with the strand.
  class Inbox final : public AttentionShell::SessionSink {
   public:
    void OnEvents(SessionEvents events) override {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(events));
      changed_.notify_one();
    }
    bool Take(SessionEvents* events) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (closed_) return false;
      *events = std::move(queue_.front());
      queue_.pop_front();
      return true;
    }
    void Close() {
      std::lock_guard lock(mutex_);
      closed_ = true;
      changed_.notify_one();
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<SessionEvents> queue_;
    bool closed_ = false;
  };

  AttentionWorker* const worker_;
  const std::shared_ptr<Inbox> inbox_;
  SessionId session_ = 0;
  std::thread thread_;
};

struct Shard {
  std::unique_ptr<ExpertHost> host;
  std::unique_ptr<InprocListener> listener;
};

// Members in the order they are made; ~System ends them the other way round.
class System {
 public:
  explicit System(const UpOptions& options) : options_(options) {}
  ~System() {
    if (http_ != nullptr) {
      gateway_->router()->Drain();
      http_->Shutdown(kGraceMs);
    }
  }

  absl::Status Start() {
    for (uint32_t i = 0; i < options_.experts; ++i) RETURN_IF_ERROR(AddShard());
    RETURN_IF_ERROR(Place());
    for (uint32_t i = 0; i < options_.attention; ++i) RETURN_IF_ERROR(AddWorker(i));
    return OpenDoors();
  }

  std::string url() const { return "http://" + Address(); }
  std::vector<ProcessInfo> Processes() const {
    std::vector<ProcessInfo> all;
    const auto add = [&](const std::string& role, uint32_t count, const std::string& address) {
      for (uint32_t i = 0; i < count; ++i) {
        all.push_back({role, role + "-" + std::to_string(i), getpid(), address, admin_->address(), "ready"});
      }
    };
    add("expert", options_.experts, "in-process");
    add("attention", options_.attention, "in-process");
    add("gateway", 1, Address());
    return all;
  }

 private:
  std::string Address() const { return options_.host + ":" + std::to_string(http_->port()); }

  absl::Status AddShard() {
    ExpertHostOptions o;
    o.model = options_.model;
    o.state_dir = options_.state_dir + "/model";
    o.ops = options_.ops;
    o.numerics = options_.numerics;
    o.threads = options_.threads;
    o.capacity_mb = options_.capacity_mb;
    Shard shard;
    ASSIGN_OR_RETURN(shard.host, ExpertHost::Create(std::move(o), &buffers_, &metrics_));
    shard.host->shard()->set_shard_id(static_cast<uint32_t>(shards_.size()) + 1);
    shard.listener = std::make_unique<InprocListener>(shard.host->shard());
    shards_.push_back(std::move(shard));
    return absl::OkStatus();
  }

  // Which shard holds which experts; each loads its own.
  absl::Status Place() {
    const Manifest& manifest = shards_[0].host->manifest();
    std::vector<PlanShard> plan_shards;
    std::vector<PlacementShard> view_shards;
    for (uint32_t i = 0; i < shards_.size(); ++i) {
      const std::string name = "expert-" + std::to_string(i);
      plan_shards.push_back({ShardId(i + 1), name, uint64_t{options_.capacity_mb} << 20, 1, ""});
      view_shards.push_back({ShardId(i + 1), name, "", shards_[i].host->incarnation()});
    }
    std::vector<PlanExpert> experts;
    uint32_t layers = 0, width = 0;
    for (const ExpertEntry& e : manifest.experts) {
      experts.push_back({e.layer, e.expert, shards_[0].host->numerics().ExpertBytes(e), 0, {}, {}});
      layers = std::max<uint32_t>(layers, e.layer.value + 1u);
      width = std::max<uint32_t>(width, e.expert.value + 1u);
    }
    PlanOptions plan_options;
    plan_options.replicas = options_.replicas;
    const Plan plan = MakePlan(plan_shards, experts, plan_options);
    RETURN_IF_ERROR(plan.fit);
    std::vector<PlacementView::Entry> entries;
    std::vector<std::vector<ExpertKey>> keys(shards_.size());
    for (size_t i = 0; i < experts.size(); ++i) {
      entries.push_back({experts[i].layer, experts[i].expert, plan.shards[i]});
      for (ShardId id : plan.shards[i]) keys[id.value - 1].push_back({experts[i].layer, experts[i].expert});
    }
    for (size_t i = 0; i < shards_.size(); ++i)
      RETURN_IF_ERROR(shards_[i].host->LoadAndWait(std::move(keys[i])));
    placement_ = std::make_shared<PlacementView>(Epoch::Make(0, 1), layers, width, std::move(view_shards),
                                                 std::move(entries));
    return absl::OkStatus();
  }

  absl::Status AddWorker(uint32_t index) {
    AttentionWorkerOptions o;
    o.name = "attention-" + std::to_string(index);
    o.model = options_.model;
    o.state_dir = options_.state_dir + "/model";
    o.ops = options_.ops;
    o.numerics = options_.numerics;
    o.threads = options_.threads;
    o.kv_mb = options_.kv_mb;
    o.prefill_chunk = options_.prefill_chunk;
    o.flight_rows = options_.max_flight_rows;
    o.flights = options_.flights;
    o.prefix_cache = options_.prefix_cache;
    ASSIGN_OR_RETURN(std::unique_ptr<AttentionWorker> worker,
                     AttentionWorker::Create(std::move(o), &buffers_, &metrics_));
    AttentionShell::Hooks hooks;
    AttentionWorker* w = worker.get();
    hooks.connect = [this, w](const PlacementShard& shard, Lane lane, ExpertChannel::Sink* sink) {
      return std::make_unique<InprocChannel>(w->hello(), lane, shards_[shard.id.value - 1].listener.get(),
                                             &buffers_, sink);
    };
    worker->Start(std::move(hooks));
    worker->shell()->SetPlacement(placement_);
    workers_.push_back(std::move(worker));
    return absl::OkStatus();
  }

  absl::Status OpenDoors() {
    ASSIGN_OR_RETURN(gateway::ModelInfo model,
                     gateway::LoadModelInfo(options_.model, options_.model_name,
                                            {options_.tool_parser, options_.reasoning_parser}));
    model.created = static_cast<int64_t>(std::time(nullptr));
    gateway::GatewayOptions o;
    o.api_keys = options_.api_keys;
    std::random_device random;
    o.seed_source = (uint64_t{random()} << 32) | random();
    gateway_ = std::make_unique<gateway::Gateway>(std::move(model), std::move(o), &metrics_);
    for (uint32_t i = 0; i < workers_.size(); ++i) {
      gateway_->router()->AddWorker("attention-" + std::to_string(i),
                                    std::make_unique<InprocAttentionClient>(workers_[i].get()));
    }
    ASSIGN_OR_RETURN(admin_, AdminServer::Start(
                                 "127.0.0.1:0", &metrics_, [this] { return gateway_->NotReady(); },
                                 [this] {
                                   for (const auto& worker : workers_) worker->shell()->UpdateMetrics();
                                 }));
    HttpServerOptions http;
    http.host = options_.host;
    http.port = static_cast<uint16_t>(options_.port);
    http.threads = 2;
    http.body_bytes_max = kHttpBodyBytesMax;
    http.header_bytes_max = kHttpHeaderBytesMax;
    http.on_error = gateway::Gateway::HttpError;
    ASSIGN_OR_RETURN(
        http_, HttpServer::Start(http, [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
          gateway_->Handle(std::move(request), std::move(responder));
        }));
    return absl::OkStatus();
  }

  const UpOptions& options_;
  Metrics metrics_;
  BufferPool buffers_;
  std::vector<Shard> shards_;
  std::shared_ptr<const PlacementView> placement_;
  std::vector<std::unique_ptr<AttentionWorker>> workers_;
  std::unique_ptr<gateway::Gateway> gateway_;
  std::unique_ptr<AdminServer> admin_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

absl::Status RunInProcess(const UpOptions& options, const InProcessHooks& hooks) {
  System system(options);
  RETURN_IF_ERROR(system.Start());
  hooks.serve(system.url(), system.Processes());
  return absl::OkStatus();
}

}  // namespace consilium
