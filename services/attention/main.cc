// consilium-attention: the router and attention worker. See README.md.
#include <unistd.h>

#include <atomic>
#include <memory>
#include <random>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/config/service_main.h"
#include "common/exec/kernel_pool.h"
#include "common/log/log.h"
#include "common/metrics/admin_server.h"
#include "common/metrics/metrics.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/net/control_client.h"
#include "common/net/grpc_channel.h"
#include "kernels/api/kernels.h"
#include "services/attention/attention_service.h"
#include "services/attention/attention_shell.h"
#include "services/attention/cpu_layer_backend.h"

namespace consilium {
namespace {

// How long SIGTERM waits for open requests.
constexpr uint32_t kDrainMs = 10000;

struct Flags {
  std::string name = "attention", listen = "127.0.0.1:0", controller, static_placement, model, state_dir,
              port_file;
  std::string ops = "auto", numerics = "f32";
  uint32_t threads = 0, kv_mb = 256, prefill_chunk = 64, flight_rows = 256, flights = 2,
           request_timeout_ms = 300000;
  bool prefix_cache = true;
  ServiceOptions common;

  void AddTo(Options* o) {
    o->Add(&name, "name", "name of this worker, stable over restarts");
    o->Add(&listen, "listen", "host:port for gateways; port 0 takes a free one");
    o->Add(&controller, "controller", "host:port of the controller");
    o->Add(&static_placement, "static-placement",
           "host:port of one shard that has all experts, instead of a controller");
    o->Add(&model, "model", "model folder (Hugging Face layout)");
    o->Add(&state_dir, "state-dir", "folder for the model manifest; empty: nothing is kept");
    o->Add(&threads, "threads", "kernel threads; 0: the cores of this process", 0, 1024);
    o->Add(&ops, "ops", "kernels: auto, or one of ref, scalar, avx2, avx512");
    o->AddChoice(&numerics, "numerics", "numerics class", {"f32"});
    o->Add(&kv_mb, "kv-mb", "memory for KV pages, MiB", 1, 1u << 24);
    o->Add(&prefill_chunk, "prefill-chunk", "prompt rows of one sequence in one step; 0: as many as fit", 0,
           kFlightRowsMax);
    o->Add(&flight_rows, "max-flight-rows", "rows of one micro-batch", 1, kFlightRowsMax);
    o->Add(&flights, "flights", "micro-batches at a time; 1 mixes prompts and decode rows in one", 1,
           kFlightsMax);
    o->Add(&prefix_cache, "prefix-cache", "keep finished KV pages for equal prompts");
    o->Add(&request_timeout_ms, "request-timeout-ms",
           "longest life of a request without a budget of its own, ms", 1, 86400000);
    o->Add(&port_file, "port-file", "file to write the bound addresses to; empty: none");
    o->Required("model");
    common.AddTo(o);
  }
};

// Everything of the process. Members die in reverse order: doors first, then the shell, then what it used.
class Worker final : public RouterAttachment::Sink {
 public:
  explicit Worker(const Flags& flags) : flags_(flags) {}
  ~Worker() override { Stop(); }

  absl::Status Start() {
    if (flags_.controller.empty() == flags_.static_placement.empty()) {
      return InvalidArgument("expected exactly one of --controller and --static-placement");
    }
    RETURN_IF_ERROR(LoadModel());
    StartShell();
    ASSIGN_OR_RETURN(service_, AttentionService::Start(flags_.listen, welcome_, shell_.get()));
    ASSIGN_OR_RETURN(admin_, AdminServer::Start(
                                 flags_.common.admin, &metrics_, [this] { return NotReady(); },
                                 [this] { shell_->UpdateMetrics(); }));
    Attach();
    RETURN_IF_ERROR(WritePortFile(flags_.port_file, service_->address(), admin_->address()));
    log::Info("attention worker is up", {{"listen", service_->address()},
                                         {"admin", admin_->address()},
                                         {"model", welcome_.model_id},
                                         {"ops", ops_->name},
                                         {"threads", pool_->threads()},
                                         {"kv_blocks", backend_->shape().kv_blocks}});
    return absl::OkStatus();
  }

  void Drain() {
    log::Info("attention worker drains");
    if (attachment_ != nullptr) attachment_->SetDraining();
    if (!shell_->Drain(kDrainMs)) log::Warn("requests are left after the drain time");
    Stop();
    log::Info("attention worker stops");
  }

  void OnPlacement(std::shared_ptr<const PlacementView> view) override {
    bool covered = true;
    for (uint32_t l = 0; l < spec_.layers.size(); ++l) {
      if (spec_.layers[l].ffn == FfnKind::kMoe)
        covered = covered && view->covered(LayerId(static_cast<uint16_t>(l)));
    }
    log::Info("placement",
              {{"epoch", view->epoch().value}, {"shards", view->shards().size()}, {"covered", covered}});
    shell_->SetPlacement(view);
    // Once every expert had a replica this worker takes requests; a later gap makes them wait, not fail.
    if (covered && !ready_.exchange(true) && attachment_ != nullptr) attachment_->SetReady(true);
  }
  void OnUp() override { log::Info("controller attached", {{"controller", flags_.controller}}); }
  void OnDown(const absl::Status& status) override {
    log::Warn("controller is away: going on with the last placement", {{"why", ToString(status)}});
  }

 private:
  absl::Status LoadModel() {
    ASSIGN_OR_RETURN(spec_, ReadModelSpec(flags_.model));
    ASSIGN_OR_RETURN(manifest_, OpenManifest(flags_.model, flags_.state_dir));
    ASSIGN_OR_RETURN(ops_, kernels::FindOps(flags_.ops));
    fingerprint_ = kernels::Fingerprint(*ops_);
    ASSIGN_OR_RETURN(const kernels::Ops* ref, kernels::FindOps("ref"));
    if (const uint64_t want = kernels::Fingerprint(*ref); want != fingerprint_) {
      return FailedPrecondition("kernels \"" + std::string(ops_->name) +
                                "\": fingerprint of class f32: expected " + std::to_string(want) + ", got " +
                                std::to_string(fingerprint_));
    }
    store_ = OpenFolderStore(manifest_);
    pool_ = std::make_unique<KernelPool>(flags_.threads);
    shell_ = std::make_unique<AttentionShell>(&buffers_, &metrics_);
    CpuLayerOptions options;
    const kernels::AttentionShape attention = spec_.attention_shape();
    const uint64_t block_bytes =
        spec_.layers.size() * sizeof(float) * (attention.page_k_floats() + attention.page_v_floats());
    const uint64_t blocks = (uint64_t{flags_.kv_mb} << 20) / block_bytes;
    if (blocks < 1) {
      return InvalidArgument("--kv-mb " + std::to_string(flags_.kv_mb) +
                             ": one KV page of this model takes " + std::to_string(block_bytes) + " bytes");
    }
    options.kv_blocks = static_cast<uint32_t>(std::min<uint64_t>(blocks, 1u << 30));
    options.flights = flags_.flights;
    options.rows_max = flags_.flight_rows;
    options.run_compute = shell_->run_compute();
    options.post_done = shell_->post_done();
    ASSIGN_OR_RETURN(backend_, CpuLayerBackend::Create(spec_, manifest_, store_.get(), ops_, pool_.get(),
                                                       &buffers_, std::move(options)));
    return absl::OkStatus();
  }

  void StartShell() {
    const std::string manifest(reinterpret_cast<const char*>(manifest_.digest.data()),
                               manifest_.digest.size());
    AttentionConfig config;
    config.shape = backend_->shape();
    config.worker = flags_.name;
    config.manifest = manifest;
    config.class_name = std::string(kernels::kClassName);
    config.fingerprint = fingerprint_;
    config.flights = flags_.flights;
    config.flight_rows_max = flags_.flight_rows;
    config.prefill_chunk = flags_.prefill_chunk;
    config.prefix_cache = flags_.prefix_cache;
    config.request_timeout_ms = flags_.request_timeout_ms;
    config.waiting_requests_max = kWaitingRequestsMax;
    std::random_device random;
    incarnation_ = (uint64_t{random()} << 32) | random();
    hello_.router_id = flags_.name;
    hello_.incarnation = incarnation_;
    hello_.models.push_back(
        {0, manifest, config.shape.hidden, config.shape.dtype_in, config.shape.dtype_out});
    hello_.classes.push_back({0, config.class_name, fingerprint_});
    welcome_ = {flags_.name,  manifest_.id,         manifest,          config.class_name,
                fingerprint_, config.shape.context, config.shape.vocab};
    AttentionShell::Hooks hooks;
    hooks.connect = [this](const PlacementShard& shard, Lane lane, ExpertChannel::Sink* sink) {
      return std::make_unique<GrpcChannel>(shard.address, lane, hello_, &io_, &buffers_, sink);
    };
    hooks.on_placement = [this](Epoch epoch) {
      if (RouterAttachment* a = attachment_now_.load()) a->Ack(epoch);
    };
    hooks.on_second = [this](const AttentionStats& stats) { ReportLoads(stats); };
    shell_->Start(config, backend_.get(), std::move(hooks));
  }

  void Attach() {
    if (!flags_.static_placement.empty()) {
      std::vector<PlacementView::Entry> entries;
      for (const ExpertEntry& e : manifest_.experts) entries.push_back({e.layer, e.expert, {ShardId(1)}});
      OnPlacement(std::make_shared<PlacementView>(
          Epoch::Make(0, 1), backend_->shape().layers, backend_->shape().experts,
          std::vector<PlacementShard>{{ShardId(1), "static", flags_.static_placement, 1}},
          std::move(entries)));
      return;
    }
    control::MemberIdentity who;
    who.name = flags_.name;
    who.incarnation = incarnation_;
    who.address = service_->address();
    who.admin = admin_->address();
    who.model_id = welcome_.model_id;
    who.manifest = welcome_.manifest;
    who.class_name = welcome_.class_name;
    who.fingerprint = fingerprint_;
    ControlClientOptions options;
    options.controller = flags_.controller;
    attachment_ = AttachRouter(options, who, this);
    attachment_now_.store(attachment_.get());
    // A placement may have come before the pointer was known.
    if (ready_.load()) attachment_->SetReady(true);
    if (const uint64_t epoch = shell_->stats().epoch; epoch > 0) attachment_->Ack(Epoch{epoch});
  }

  void ReportLoads(const AttentionStats& stats) {
    RouterAttachment* a = attachment_now_.load();
    if (a == nullptr) return;
    std::vector<control::ExpertLoad> loads;
    const uint32_t experts = backend_->shape().experts;
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
    if (attachment_ != nullptr) shell_->stats();  // whoever read the pointer on the strand is done with it
    attachment_.reset();
    admin_.reset();
    service_.reset();
    if (shell_ != nullptr) shell_->Stop();
  }

  const Flags flags_;
  Metrics metrics_;
  BufferPool buffers_;
  GrpcIo io_{1};
  ModelSpec spec_;
  Manifest manifest_;
  const kernels::Ops* ops_ = nullptr;
  uint64_t fingerprint_ = 0, incarnation_ = 0;
  std::unique_ptr<ModelStore> store_;
  std::unique_ptr<KernelPool> pool_;
  RouterHello hello_;
  WorkerWelcome welcome_;
  std::vector<uint64_t> last_rows_;  // on the strand
  std::atomic<bool> ready_{false};
  std::unique_ptr<LayerBackend> backend_;
  std::unique_ptr<AttentionShell> shell_;
  std::unique_ptr<AttentionService> service_;
  std::unique_ptr<AdminServer> admin_;
  std::unique_ptr<RouterAttachment> attachment_;
  std::atomic<RouterAttachment*> attachment_now_{nullptr};
};

absl::StatusOr<std::function<void()>> Start(const Flags& flags) {
  auto worker = std::make_shared<Worker>(flags);  // shared: std::function must be copyable
  RETURN_IF_ERROR(worker->Start());
  return std::function<void()>([worker] { worker->Drain(); });
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
