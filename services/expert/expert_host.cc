#include "services/expert/expert_host.h"

#include <algorithm>
#include <random>
#include <thread>

#include "common/base/status.h"
#include "common/log/log.h"

namespace consilium {
namespace {
constexpr unsigned kLoaderThreadsMax = 8;
}  // namespace

absl::StatusOr<std::unique_ptr<ExpertHost>> ExpertHost::Create(ExpertHostOptions options, BufferPool* pool,
                                                               Metrics* metrics) {
  std::unique_ptr<ExpertHost> host(new ExpertHost);
  ExpertHost* h = host.get();
  h->options_ = std::move(options);
  ASSIGN_OR_RETURN(h->spec_, ReadModelSpec(h->options_.model));
  ASSIGN_OR_RETURN(h->manifest_, OpenManifest(h->options_.model, h->options_.state_dir));
  h->store_ = OpenFolderStore(h->manifest_);
  ASSIGN_OR_RETURN(h->numerics_, ChooseNumerics(h->options_.numerics, h->manifest_));
  ASSIGN_OR_RETURN(h->ops_, kernels::FindServingOps(h->options_.ops, h->numerics_.arithmetic));
  std::random_device random;
  h->incarnation_ = uint64_t{random()} << 32 | random();
  h->kernel_pool_ = std::make_unique<KernelPool>(h->options_.threads);
  CpuExpertOptions backend = ExpertOptionsOf(h->spec_);
  backend.numerics = h->numerics_;
  h->backend_ = std::make_unique<CpuExpertBackend>(backend, h->ops_.ops, h->kernel_pool_.get());
  ExpertShard::Config config;
  config.core = h->CoreOptions();
  config.incarnation = h->incarnation_;
  config.load = [h](ExpertKey key) -> absl::StatusOr<ExpertHandle> {
    const ExpertEntry* entry = h->manifest_.FindExpert(key.layer, key.expert);
    if (entry == nullptr) return NotFound("the model has no such expert");
    return h->backend_->Load(*entry, h->store_.get());
  };
  // Twice the cores: while one of two waits for the disk, the other checks sums and packs.
  config.loader_threads = std::clamp(2 * std::thread::hardware_concurrency(), 2u, kLoaderThreadsMax);
  config.on_host_changed = h->options_.on_host_changed;
  config.on_op_done = [h](const expert_action::OpDone& done) { h->OnOpDone(done); };
  h->shard_ = std::make_unique<ExpertShard>(std::move(config), h->backend_.get(), pool, metrics);
  return host;
}

ExpertCoreOptions ExpertHost::CoreOptions() const {
  ExpertCoreOptions c;
  c.manifest = std::string(manifest_.digest.begin(), manifest_.digest.end());
  c.hidden = spec_.hidden;
  c.dtype_in = numerics_.integer_rows ? frame::DtypeCode::kI8Scale32 : frame::DtypeCode::kF32;
  c.dtype_out = frame::DtypeCode::kF32;
  c.class_name = numerics_.name();
  c.fingerprint = ops_.fingerprint;
  c.layers = static_cast<uint32_t>(spec_.layers.size());
  c.experts = spec_.gate.experts;
  for (const ExpertEntry& e : manifest_.experts)
    c.expert_bytes[{e.layer, e.expert}] = numerics_.ExpertBytes(e);
  c.capacity_bytes = uint64_t{options_.capacity_mb} << 20;
  return c;
}

control::MemberIdentity ExpertHost::Identity() const {
  control::MemberIdentity who;
  who.incarnation = incarnation_;
  who.model_id = manifest_.id;
  who.manifest = std::string(manifest_.digest.begin(), manifest_.digest.end());
  who.class_name = numerics_.name();
  who.fingerprint = ops_.fingerprint;
  return who;
}

std::vector<control::MoeLayer> ExpertHost::MoeLayers() const {
  std::vector<control::MoeLayer> layers;
  for (const ExpertEntry& e : manifest_.experts) {
    if (layers.empty() || layers.back().layer != e.layer) layers.push_back({e.layer, 0, 0});
    layers.back().experts = std::max<uint32_t>(layers.back().experts, e.expert.value + 1u);
    layers.back().expert_bytes = std::max(layers.back().expert_bytes, numerics_.ExpertBytes(e));
  }
  return layers;
}

std::vector<ExpertKey> ExpertHost::AllExperts() const {
  std::vector<ExpertKey> keys;
  for (const ExpertEntry& e : manifest_.experts) keys.push_back({e.layer, e.expert});
  return keys;
}

void ExpertHost::OnOpDone(const expert_action::OpDone& done) {
  LogQuantError();
  if (options_.on_op_done) options_.on_op_done(done);
  std::lock_guard lock(mutex_);
  if (done.op_id != awaited_op_) return;
  awaited_ = done.ok ? absl::OkStatus() : Internal(done.text);
  op_done_.notify_all();
}

// After each operation that quantised experts.
void ExpertHost::LogQuantError() {
  const kernels::QuantError error = backend_->quant_error();
  if (error.reference == quant_error_logged_) return;
  quant_error_logged_ = error.reference;
  log::Info(
      "experts quantised at load",
      {{"class", numerics_.name()}, {"relative_error", error.relative()}, {"largest_error", error.largest}});
}

absl::Status ExpertHost::LoadAndWait(std::vector<ExpertKey> experts) {
  if (experts.empty()) return absl::OkStatus();
  {
    std::lock_guard lock(mutex_);
    awaited_op_ = next_op_;
    awaited_.reset();
  }
  Load(std::move(experts));
  std::unique_lock lock(mutex_);
  op_done_.wait(lock, [this] { return awaited_.has_value(); });
  return *awaited_;
}

void ExpertHost::Load(std::vector<ExpertKey> experts) {
  expert_event::Command command;
  command.kind = expert_event::Command::Kind::kLoad;
  command.op_id = next_op_++;
  command.experts = std::move(experts);
  shard_->Command(std::move(command));
}

}  // namespace consilium
