#include "services/expert/expert_service.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <thread>

#include "common/base/status.h"
#include "common/config/service_main.h"
#include "common/log/log.h"
#include "common/metrics/admin_server.h"
#include "common/net/grpc_server.h"
#include "common/net/local_server.h"
#include "kernels/api/kernels.h"
#include "services/expert/controller_link.h"
#include "services/expert/expert_host.h"

namespace consilium {

void ExpertServiceOptions::AddTo(Options* o) {
  o->Add(&name, "name", "name of this shard, stable over restarts");
  o->Add(&listen, "listen", "host:port of the gRPC server; port 0: any free one");
  o->Add(&advertise, "advertise", "host:port by which routers reach it; empty: the listen address");
  o->AddChoice(&local_transport, "local-transport",
               "auto: routers of this host or pod may use a local socket, which costs less than gRPC; off: "
               "gRPC only",
               {"auto", "off"});
  o->Add(&controller, "controller", "host:port of the controller, which decides what is loaded");
  o->AddChoice(&static_experts, "static-experts", "without a controller: which experts to load", {"", "all"});
  o->Add(&model, "model", "model folder (Hugging Face layout)");
  o->Required("model");
  o->Add(&state_dir, "state-dir",
         "folder that keeps the model's manifest; empty: it is computed at each start");
  o->Add(&port_file, "port-file", "file that is written with the bound addresses when the shard listens");
  o->Add(&threads, "threads", "kernel threads; 0: the cores of this process", 0, 1024);
  o->Add(&io_threads, "io-threads", "threads that move frames", 1, 64);
  o->Add(&ops, "ops", "kernels: auto, or one of those this machine can run (scalar, avx2, avx512, ref)");
  numerics.AddTo(o);
  o->Add(&capacity_mb, "capacity-mb", "MiB of expert weights to hold; 0: no limit", 0, 1u << 30);
  o->Add(&drain_ms, "drain-ms", "ms to answer queued calls after SIGTERM", 0, 600'000);
  service.AddTo(o);
}

namespace {

absl::Status CheckOptions(const ExpertServiceOptions& o) {
  HostPort parts;
  if (!ParseHostPort(o.listen, &parts))
    return InvalidArgument("--listen: expected host:port, got \"" + o.listen + "\"");
  if (o.controller.empty() == o.static_experts.empty()) {
    return InvalidArgument("give either --controller host:port or --static-experts all");
  }
  if (!o.controller.empty() && !ParseHostPort(o.controller, &parts)) {
    return InvalidArgument("--controller: expected host:port, got \"" + o.controller + "\"");
  }
  if (!o.advertise.empty() && !ParseHostPort(o.advertise, &parts)) {
    return InvalidArgument("--advertise: expected host:port, got \"" + o.advertise + "\"");
  }
  return absl::OkStatus();
}

}  // namespace

// Members in the order of their lifetimes: what is used lies before its users.
struct ExpertService::Impl {
  ExpertServiceOptions options;
  BufferPool pool;
  Metrics metrics;
  ControllerLink controller;
  std::unique_ptr<ExpertHost> host;
  ExpertShard* shard = nullptr;  // of the host
  std::unique_ptr<GrpcFrameServer> server;
  std::unique_ptr<LocalServer> local;
  std::unique_ptr<AdminServer> admin;
  std::mutex mutex;
  std::condition_variable wake;
  bool stopping = false;
  std::thread load_thread;

  ~Impl() { Stop(); }

  absl::Status MakeHost() {
    ExpertHostOptions o;
    o.model = options.model;
    o.state_dir = options.state_dir;
    o.ops = options.ops;
    o.numerics = options.numerics;
    o.threads = options.threads;
    o.capacity_mb = options.capacity_mb;
    o.on_host_changed = [this](ExpertKey key, HostState state) { controller.HostChanged(key, state); };
    o.on_op_done = [this](const expert_action::OpDone& done) { controller.OpDone(done); };
    ASSIGN_OR_RETURN(host, ExpertHost::Create(std::move(o), &pool, &metrics));
    shard = host->shard();
    return absl::OkStatus();
  }

  ShardDescription Describe() const {
    ShardDescription d;
    d.shard_id = shard->shard_id();
    d.name = options.name;
    d.version = CONSILIUM_VERSION;
    d.class_name = host->numerics().name();
    d.fingerprint = host->ops().fingerprint;
    for (const auto& [key, state] : shard->experts()) {
      d.experts.push_back({key.layer.value, key.expert.value, static_cast<uint8_t>(state)});
    }
    return d;
  }

  std::string WhyNotReady() const {
    if (!options.controller.empty()) return controller.attached() ? "" : "not yet attached to the controller";
    const uint32_t ready = shard->stats().experts_ready;
    const size_t all = host->manifest().experts.size();
    if (ready == all) return "";
    return "loading: " + std::to_string(ready) + " of " + std::to_string(all) + " experts are ready";
  }

  std::string Address() const { return options.advertise.empty() ? server->address() : options.advertise; }

  // Without it routers use gRPC, so that a name that is taken is no reason to stop.
  void OpenLocalDoor() {
    if (options.local_transport == "off") return;
    auto started = LocalServer::Start(Address(), shard, &pool);
    if (started.ok())
      local = std::move(*started);
    else
      log::Warn("no local socket; routers of this host will use gRPC", {{"why", ToString(started.status())}});
  }

  void Attach() {
    control::MemberIdentity who = host->Identity();
    who.name = options.name;
    who.address = Address();
    who.admin = admin->address();
    ControlClientOptions control;
    control.controller = options.controller;
    controller.Attach(control, who, host->MoeLayers(), uint64_t{options.capacity_mb} << 20, shard);
    load_thread = std::thread([this] { ReportLoad(); });
  }

  // Rows per second, smoothed over about three seconds.
  void ReportLoad() {
    double load = 0;
    uint64_t before = shard->stats().rows_done;
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, std::chrono::seconds(1), [this] { return stopping; })) {
      const uint64_t now = shard->stats().rows_done;
      load += 0.3 * (static_cast<double>(now - before) - load);
      before = now;
      controller.SetLoad(load);
    }
  }

  void Stop() {
    {
      std::lock_guard lock(mutex);
      if (std::exchange(stopping, true)) return;
      wake.notify_all();
    }
    if (load_thread.joinable()) load_thread.join();
    if (server != nullptr) {
      const bool empty = shard->Drain(options.drain_ms);
      log::Info("drained", {{"all_answered", empty}});
    }
    controller.Detach();
    local.reset();
    server.reset();
    admin.reset();
    host.reset();
    shard = nullptr;
  }
};

ExpertService::ExpertService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertService::~ExpertService() = default;
void ExpertService::Stop() { impl_->Stop(); }

absl::StatusOr<std::unique_ptr<ExpertService>> ExpertService::Start(const ExpertServiceOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  auto impl = std::make_unique<Impl>();
  Impl* s = impl.get();
  s->options = options;
  RETURN_IF_ERROR(s->MakeHost());
  ASSIGN_OR_RETURN(s->server, GrpcFrameServer::Start(options.listen, options.io_threads, s->shard, &s->pool,
                                                     [s] { return s->Describe(); }));
  s->OpenLocalDoor();
  ASSIGN_OR_RETURN(s->admin,
                   AdminServer::Start(options.service.admin, &s->metrics, [s] { return s->WhyNotReady(); }));
  if (options.controller.empty())
    s->host->Load(s->host->AllExperts());
  else
    s->Attach();
  RETURN_IF_ERROR(WritePortFile(options.port_file, s->server->address(), s->admin->address()));
  log::Info("expert shard listens", {{"name", options.name},
                                     {"listen", s->server->address()},
                                     {"local_socket", s->local != nullptr},
                                     {"admin", s->admin->address()},
                                     {"model", s->host->manifest().id},
                                     {"experts", s->host->manifest().experts.size()},
                                     {"ops", s->host->ops().ops->name},
                                     {"class", s->host->numerics().name()},
                                     {"threads", s->host->threads()}});
  return std::unique_ptr<ExpertService>(new ExpertService(std::move(impl)));
}

}  // namespace consilium
