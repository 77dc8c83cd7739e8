#include "services/attention/attention_worker.h"

#include <algorithm>
#include <random>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "services/attention/cache_split.h"

namespace consilium {

absl::StatusOr<std::unique_ptr<AttentionWorker>> AttentionWorker::Create(AttentionWorkerOptions options,
                                                                         BufferPool* buffers,
                                                                         Metrics* metrics) {
  std::unique_ptr<AttentionWorker> worker(new AttentionWorker);
  AttentionWorker* w = worker.get();
  w->options_ = std::move(options);
  ASSIGN_OR_RETURN(w->spec_, ReadModelSpec(w->options_.model));
  ASSIGN_OR_RETURN(w->manifest_, OpenManifest(w->options_.model, w->options_.state_dir));
  ASSIGN_OR_RETURN(w->numerics_, ChooseNumerics(w->options_.numerics, w->manifest_));
  ASSIGN_OR_RETURN(w->ops_, kernels::FindServingOps(w->options_.ops, w->numerics_.arithmetic));
  w->store_ = OpenFolderStore(w->manifest_);
  w->pool_ = std::make_unique<KernelPool>(w->options_.threads);
  w->shell_ = std::make_unique<AttentionShell>(buffers, metrics);
  RETURN_IF_ERROR(w->MakeBackend(buffers));

  const std::string manifest(w->manifest_.digest.begin(), w->manifest_.digest.end());
  const BackendShape& shape = w->backend_->shape();
  std::random_device random;
  w->hello_.router_id = w->options_.name;
  w->hello_.incarnation = (uint64_t{random()} << 32) | random();
  w->hello_.models.push_back({0, manifest, shape.hidden, shape.dtype_in, shape.dtype_out});
  w->hello_.classes.push_back({0, w->numerics_.name(), w->ops_.fingerprint});
  w->welcome_ = {w->options_.name,    w->manifest_.id, manifest,   w->numerics_.name(),
                 w->ops_.fingerprint, shape.context,   shape.vocab};
  return worker;
}

absl::Status AttentionWorker::MakeBackend(BufferPool* buffers) {
  CpuLayerOptions options;
  ASSIGN_OR_RETURN(const CacheSplit split, SplitCache(spec_, options_.kv_mb));
  options.kv_blocks = split.kv_blocks;
  options.state_slots = split.state_slots;
  options.numerics = numerics_;
  options.flights = options_.flights;
  options.rows_max = options_.flight_rows;
  options.run_compute = shell_->run_compute();
  options.post_done = shell_->post_done();
  ASSIGN_OR_RETURN(backend_, CpuLayerBackend::Create(spec_, manifest_, store_.get(), ops_.ops, pool_.get(),
                                                     buffers, std::move(options)));
  return absl::OkStatus();
}

AttentionWorker::~AttentionWorker() { Stop(); }

void AttentionWorker::Stop() {
  if (shell_ != nullptr) shell_->Stop();
}

void AttentionWorker::Start(AttentionShell::Hooks hooks) {
  AttentionConfig config;
  config.shape = backend_->shape();
  config.worker = options_.name;
  config.manifest = welcome_.manifest;
  config.class_name = welcome_.class_name;
  config.fingerprint = ops_.fingerprint;
  config.flights = options_.flights;
  config.flight_rows_max = options_.flight_rows;
  config.prefill_chunk = options_.prefill_chunk;
  config.prefix_cache = options_.prefix_cache;
  config.request_timeout_ms = options_.request_timeout_ms;
  config.waiting_requests_max = kWaitingRequestsMax;
  shell_->Start(config, backend_.get(), std::move(hooks));
}

bool AttentionWorker::Covered(const PlacementView& view) const {
  for (uint32_t l = 0; l < spec_.layers.size(); ++l) {
    if (spec_.layers[l].ffn == FfnKind::kMoe && !view.covered(LayerId(static_cast<uint16_t>(l))))
      return false;
  }
  return true;
}

}  // namespace consilium
