#include "services/expert/expert_service.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <random>
#include <thread>

#include "common/base/status.h"
#include "common/config/service_main.h"
#include "common/exec/kernel_pool.h"
#include "common/log/log.h"
#include "common/metrics/admin_server.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/net/grpc_server.h"
#include "kernels/api/kernels.h"
#include "services/expert/controller_link.h"
#include "services/expert/cpu_expert_backend.h"
#include "services/expert/expert_shard.h"

namespace consilium {

void ExpertServiceOptions::AddTo(Options* o) {
  o->Add(&name, "name", "name of this shard, stable over restarts");
  o->Add(&listen, "listen", "host:port of the gRPC server; port 0: any free one");
  o->Add(&advertise, "advertise", "host:port by which routers reach it; empty: the listen address");
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
  o->AddChoice(&numerics, "numerics", "numerics class", {"f32"});
  o->Add(&capacity_mb, "capacity-mb", "MiB of expert weights to hold; 0: no limit", 0, 1u << 30);
  o->Add(&drain_ms, "drain-ms", "ms to answer queued calls after SIGTERM", 0, 600'000);
  service.AddTo(o);
}

namespace {

struct Model {
  ModelSpec spec;
  Manifest manifest;
  std::unique_ptr<ModelStore> store;
};

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

absl::StatusOr<Model> OpenModel(const ExpertServiceOptions& o) {
  Model m;
  ASSIGN_OR_RETURN(m.spec, ReadModelSpec(o.model));
  ASSIGN_OR_RETURN(m.manifest, OpenManifest(o.model, o.state_dir));
  m.store = OpenFolderStore(m.manifest);
  return m;
}

// The kernels to use; their fingerprint must be the class's.
absl::StatusOr<const kernels::Ops*> ChooseOps(const std::string& name, uint64_t* fingerprint) {
  ASSIGN_OR_RETURN(const kernels::Ops* ops, kernels::FindOps(name));
  ASSIGN_OR_RETURN(const kernels::Ops* ref, kernels::FindOps("ref"));
  *fingerprint = kernels::Fingerprint(*ops);
  const uint64_t expected = kernels::Fingerprint(*ref);
  if (*fingerprint == expected) return ops;
  return FailedPrecondition("kernels \"" + name + "\" of this machine have another fingerprint: expected " +
                            std::to_string(expected) + ", got " + std::to_string(*fingerprint));
}

ExpertCoreOptions CoreOptions(const ExpertServiceOptions& o, const Model& m, uint64_t fingerprint) {
  ExpertCoreOptions c;
  c.manifest = std::string(m.manifest.digest.begin(), m.manifest.digest.end());
  c.hidden = m.spec.hidden;
  c.dtype_in = c.dtype_out = frame::DtypeCode::kF32;
  c.class_name = std::string(kernels::kClassName);
  c.fingerprint = fingerprint;
  c.layers = static_cast<uint32_t>(m.spec.layers.size());
  c.experts = m.spec.gate.experts;
  for (const ExpertEntry& e : m.manifest.experts) c.expert_bytes[{e.layer, e.expert}] = e.bytes();
  c.capacity_bytes = uint64_t{o.capacity_mb} << 20;
  return c;
}

std::vector<control::MoeLayer> MoeLayers(const Manifest& manifest) {
  std::vector<control::MoeLayer> layers;
  for (const ExpertEntry& e : manifest.experts) {
    if (layers.empty() || layers.back().layer != e.layer) layers.push_back({e.layer, 0, e.bytes()});
    layers.back().experts = std::max<uint32_t>(layers.back().experts, e.expert.value + 1u);
    layers.back().expert_bytes = std::max(layers.back().expert_bytes, e.bytes());
  }
  return layers;
}

}  // namespace

// Members in the order of their lifetimes: what is used lies before its users.
struct ExpertService::Impl {
  ExpertServiceOptions options;
  Model model;
  const kernels::Ops* ops = nullptr;
  uint64_t fingerprint = 0;
  uint64_t incarnation = 0;
  BufferPool pool;
  Metrics metrics;
  std::unique_ptr<KernelPool> kernel_pool;
  std::unique_ptr<CpuExpertBackend> backend;
  ControllerLink controller;
  std::unique_ptr<ExpertShard> shard;
  std::unique_ptr<GrpcFrameServer> server;
  std::unique_ptr<AdminServer> admin;
  std::mutex mutex;
  std::condition_variable wake;
  bool stopping = false;
  std::thread load_thread;

  ~Impl() { Stop(); }

  void MakeShard() {
    CpuExpertOptions backend_options;
    backend_options.hidden = model.spec.hidden;
    backend_options.inter = model.spec.expert_inter;
    backend_options.activation = model.spec.activation;
    backend = std::make_unique<CpuExpertBackend>(backend_options, ops, kernel_pool.get());
    ExpertShard::Config config;
    config.core = CoreOptions(options, model, fingerprint);
    config.incarnation = incarnation;
    config.load = [this](ExpertKey key) -> absl::StatusOr<ExpertHandle> {
      const ExpertEntry* entry = model.manifest.FindExpert(key.layer, key.expert);
      if (entry == nullptr) return NotFound("the model has no such expert");
      return backend->Load(*entry, model.store.get());
    };
    config.on_host_changed = [this](ExpertKey key, HostState state) { controller.HostChanged(key, state); };
    config.on_op_done = [this](const expert_action::OpDone& done) { controller.OpDone(done); };
    shard = std::make_unique<ExpertShard>(std::move(config), backend.get(), &pool, &metrics);
  }

  ShardDescription Describe() const {
    ShardDescription d;
    d.shard_id = shard->shard_id();
    d.name = options.name;
    d.version = CONSILIUM_VERSION;
    d.class_name = std::string(kernels::kClassName);
    d.fingerprint = fingerprint;
    for (const auto& [key, state] : shard->experts()) {
      d.experts.push_back({key.layer.value, key.expert.value, static_cast<uint8_t>(state)});
    }
    return d;
  }

  std::string WhyNotReady() const {
    if (!options.controller.empty()) return controller.attached() ? "" : "not yet attached to the controller";
    const uint32_t ready = shard->stats().experts_ready;
    const size_t all = model.manifest.experts.size();
    if (ready == all) return "";
    return "loading: " + std::to_string(ready) + " of " + std::to_string(all) + " experts are ready";
  }

  void LoadAll() {
    expert_event::Command command;
    command.kind = expert_event::Command::Kind::kLoad;
    command.op_id = 1;
    for (const ExpertEntry& e : model.manifest.experts) command.experts.push_back({e.layer, e.expert});
    shard->Command(std::move(command));
  }

  void Attach() {
    control::MemberIdentity who;
    who.name = options.name;
    who.incarnation = incarnation;
    who.address = options.advertise.empty() ? server->address() : options.advertise;
    who.admin = admin->address();
    who.model_id = model.manifest.id;
    who.manifest = std::string(model.manifest.digest.begin(), model.manifest.digest.end());
    who.class_name = std::string(kernels::kClassName);
    who.fingerprint = fingerprint;
    ControlClientOptions control;
    control.controller = options.controller;
    controller.Attach(control, who, MoeLayers(model.manifest), uint64_t{options.capacity_mb} << 20,
                      shard.get());
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
    server.reset();
    admin.reset();
    shard.reset();
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
  ASSIGN_OR_RETURN(s->model, OpenModel(options));
  ASSIGN_OR_RETURN(s->ops, ChooseOps(options.ops, &s->fingerprint));
  std::random_device random;
  s->incarnation = uint64_t{random()} << 32 | random();
  s->kernel_pool = std::make_unique<KernelPool>(options.threads);
  s->MakeShard();
  ASSIGN_OR_RETURN(s->server, GrpcFrameServer::Start(options.listen, options.io_threads, s->shard.get(),
                                                     &s->pool, [s] { return s->Describe(); }));
  ASSIGN_OR_RETURN(s->admin,
                   AdminServer::Start(options.service.admin, &s->metrics, [s] { return s->WhyNotReady(); }));
  if (options.controller.empty())
    s->LoadAll();
  else
    s->Attach();
  RETURN_IF_ERROR(WritePortFile(options.port_file, s->server->address(), s->admin->address()));
  log::Info("expert shard listens", {{"name", options.name},
                                     {"listen", s->server->address()},
                                     {"admin", s->admin->address()},
                                     {"model", s->model.manifest.id},
                                     {"experts", s->model.manifest.experts.size()},
                                     {"ops", std::string_view(s->ops->name)},
                                     {"threads", s->kernel_pool->threads()}});
  return std::unique_ptr<ExpertService>(new ExpertService(std::move(impl)));
}

}  // namespace consilium
