// consilium-attention: the router and attention worker. See README.md.
#include <atomic>
#include <memory>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/config/service_main.h"
#include "common/log/log.h"
#include "common/metrics/admin_server.h"
#include "common/metrics/metrics.h"
#include "common/net/control_client.h"
#include "common/net/expert_dialer.h"
#include "services/attention/attention_service.h"
#include "services/attention/attention_worker.h"

namespace consilium {
namespace {

// How long SIGTERM waits for open requests.
constexpr uint32_t kDrainMs = 10000;

struct Flags {
  AttentionWorkerOptions worker;
  std::string listen = "127.0.0.1:0", controller, static_placement, local_transport = "auto", port_file;
  ServiceOptions common;

  void AddTo(Options* o) {
    o->Add(&worker.name, "name", "name of this worker, stable over restarts");
    o->Add(&listen, "listen", "host:port for gateways; port 0 takes a free one");
    o->Add(&controller, "controller", "host:port of the controller");
    o->Add(&static_placement, "static-placement",
           "host:port of one shard that has all experts, instead of a controller");
    o->AddChoice(&local_transport, "local-transport",
                 "auto: shards of this host or pod are reached by their local socket, which costs less than "
                 "gRPC; off: gRPC always",
                 {"auto", "off"});
    o->Add(&worker.model, "model", "model folder (Hugging Face layout)");
    o->Add(&worker.state_dir, "state-dir", "folder for the model manifest; empty: nothing is kept");
    o->Add(&worker.threads, "threads", "kernel threads; 0: the cores of this process", 0, 1024);
    o->Add(&worker.ops, "ops", "kernels: auto, or one of ref, scalar, avx2, avx512");
    worker.numerics.AddTo(o);
    o->Add(&worker.kv_mb, "kv-mb", "memory for KV pages and recurrent states, MiB", 1, 1u << 24);
    o->Add(&worker.prefill_chunk, "prefill-chunk",
           "prompt rows of one sequence in one step; 0: as many as fit", 0, kFlightRowsMax);
    o->Add(&worker.flight_rows, "max-flight-rows", "rows of one micro-batch", 1, kFlightRowsMax);
    o->Add(&worker.flights, "flights", "micro-batches at a time; 1 mixes prompts and decode rows in one", 1,
           kFlightsMax);
    o->Add(&worker.prefix_cache, "prefix-cache", "keep finished KV pages for equal prompts");
    o->Add(&worker.request_timeout_ms, "request-timeout-ms",
           "longest life of a request without a budget of its own, ms", 1, 86400000);
    o->Add(&port_file, "port-file", "file to write the bound addresses to; empty: none");
    o->Required("model");
    common.AddTo(o);
  }
};

// Everything of the process. Members die in reverse order: doors first, then the worker, then what it used.
class Process final : public RouterAttachment::Sink {
 public:
  explicit Process(const Flags& flags) : flags_(flags) {}
  ~Process() override { Stop(); }

  absl::Status Start() {
    if (flags_.controller.empty() == flags_.static_placement.empty()) {
      return InvalidArgument("expected exactly one of --controller and --static-placement");
    }
    ASSIGN_OR_RETURN(worker_, AttentionWorker::Create(flags_.worker, &buffers_, &metrics_));
    StartWorker();
    ASSIGN_OR_RETURN(service_, AttentionService::Start(flags_.listen, worker_->welcome(), worker_->shell()));
    ASSIGN_OR_RETURN(admin_, AdminServer::Start(
                                 flags_.common.admin, &metrics_, [this] { return NotReady(); },
                                 [this] { worker_->shell()->UpdateMetrics(); }));
    Attach();
    RETURN_IF_ERROR(WritePortFile(flags_.port_file, service_->address(), admin_->address()));
    log::Info("attention worker is up", {{"listen", service_->address()},
                                         {"admin", admin_->address()},
                                         {"model", worker_->welcome().model_id},
                                         {"ops", worker_->ops().ops->name},
                                         {"class", worker_->welcome().class_name},
                                         {"threads", worker_->threads()},
                                         {"kv_blocks", worker_->shape().kv_blocks},
                                         {"state_slots", worker_->shape().state_slots}});
    return absl::OkStatus();
  }

  void Drain() {
    log::Info("attention worker drains");
    if (attachment_ != nullptr) attachment_->SetDraining();
    if (!worker_->shell()->Drain(kDrainMs)) log::Warn("requests are left after the drain time");
    Stop();
    log::Info("attention worker stops");
  }

  void OnPlacement(std::shared_ptr<const PlacementView> view) override {
    const bool covered = worker_->Covered(*view);
    log::Info("placement",
              {{"epoch", view->epoch().value}, {"shards", view->shards().size()}, {"covered", covered}});
    worker_->shell()->SetPlacement(view);
    // Once every expert had a replica this worker takes requests; a later gap makes them wait, not fail.
    RouterAttachment* attachment = attachment_now_.load();
    if (covered && !ready_.exchange(true) && attachment != nullptr) attachment->SetReady(true);
  }
  void OnUp() override { log::Info("controller attached", {{"controller", flags_.controller}}); }
  void OnDown(const absl::Status& status) override {
    log::Warn("controller is away: going on with the last placement", {{"why", ToString(status)}});
  }

 private:
  void StartWorker() {
    AttentionShell::Hooks hooks;
    hooks.connect = [this](const PlacementShard& shard, Lane lane, ExpertChannel::Sink* sink) {
      return dialer_.Connect(shard.address, lane, worker_->hello(), sink);
    };
    hooks.on_placement = [this](Epoch epoch) {
      if (RouterAttachment* a = attachment_now_.load()) a->Ack(epoch);
    };
    hooks.on_second = [this](const AttentionStats& stats) { ReportLoads(stats); };
    worker_->Start(std::move(hooks));
  }

  void Attach() {
    if (!flags_.static_placement.empty()) {
      std::vector<PlacementView::Entry> entries;
      for (const ExpertEntry& e : worker_->manifest().experts)
        entries.push_back({e.layer, e.expert, {ShardId(1)}});
      OnPlacement(std::make_shared<PlacementView>(
          Epoch::Make(0, 1), worker_->shape().layers, worker_->shape().experts,
          std::vector<PlacementShard>{{ShardId(1), "static", flags_.static_placement, 1}},
          std::move(entries)));
      return;
    }
    const WorkerWelcome& welcome = worker_->welcome();
    control::MemberIdentity who;
    who.name = flags_.worker.name;
    who.incarnation = worker_->hello().incarnation;
    who.address = service_->address();
    who.admin = admin_->address();
    who.model_id = welcome.model_id;
    who.manifest = welcome.manifest;
    who.class_name = welcome.class_name;
    who.fingerprint = welcome.fingerprint;
    ControlClientOptions options;
    options.controller = flags_.controller;
    attachment_ = AttachRouter(options, who, this);
    attachment_now_.store(attachment_.get());
    // A placement may have come before the pointer was known.
    if (ready_.load()) attachment_->SetReady(true);
    if (const uint64_t epoch = worker_->shell()->stats().epoch; epoch > 0) attachment_->Ack(Epoch{epoch});
  }

  void ReportLoads(const AttentionStats& stats) {
    RouterAttachment* a = attachment_now_.load();
    if (a == nullptr) return;
    std::vector<control::ExpertLoad> loads;
    const uint32_t experts = worker_->shape().experts;
    last_rows_.resize(stats.expert_rows.size(), 0);
    for (size_t i = 0; i < stats.expert_rows.size(); ++i) {
      const uint64_t rows = stats.expert_rows[i] - last_rows_[i];
      if (rows == 0) continue;
      loads.push_back({LayerId(static_cast<uint16_t>(i / experts)),
                       ExpertId(static_cast<uint16_t>(i % experts)), static_cast<double>(rows)});
    }
    last_rows_ = stats.expert_rows;
    a->SetLoads(std::move(loads));
  }

  std::string NotReady() const {
    return ready_.load() ? "" : "no placement with a replica of every expert yet";
  }

  void Stop() {
    attachment_now_.store(nullptr);
    attachment_.reset();
    admin_.reset();
    service_.reset();
    if (worker_ != nullptr) worker_->Stop();
  }

  const Flags flags_;
  Metrics metrics_;
  BufferPool buffers_;
  ExpertDialer dialer_{flags_.local_transport == "auto", &buffers_};
  std::vector<uint64_t> last_rows_;  // on the strand
  std::atomic<bool> ready_{false};
  std::unique_ptr<AttentionWorker> worker_;
  std::unique_ptr<AttentionService> service_;
  std::unique_ptr<AdminServer> admin_;
  std::unique_ptr<RouterAttachment> attachment_;
  std::atomic<RouterAttachment*> attachment_now_{nullptr};
};

absl::StatusOr<std::function<void()>> Start(const Flags& flags) {
  auto process = std::make_shared<Process>(flags);  // shared: std::function must be copyable
  RETURN_IF_ERROR(process->Start());
  return std::function<void()>([process] { process->Drain(); });
}

}  // namespace
}  // namespace consilium

int main(int argc, char** argv) {
  using namespace consilium;
  Options options("consilium-attention",
                  "Attention worker of a Consilium cluster: batching, attention, gates, dispatch.");
  Flags flags;
  flags.AddTo(&options);
  if (const std::optional<int> code = options.Parse(argc, argv)) return *code;
  flags.common.ConfigureLog("attention");
  return RunService("consilium-attention", [&] { return Start(flags); });
}
