// An attention worker without a door: model, kernels, backend and shell of one process or, in one-process
// mode, of one worker in it. Doors (gRPC, in-process) open sessions of shell().
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/exec/kernel_pool.h"
#include "common/metrics/metrics.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/numerics_choice.h"
#include "common/session/session.h"
#include "kernels/api/serving_ops.h"
#include "services/attention/attention_shell.h"
#include "services/attention/cpu_layer_backend.h"

namespace consilium {

struct AttentionWorkerOptions {
  std::string name = "attention";
  std::string model;      // folder
  std::string state_dir;  // "": the manifest is computed at each start
  std::string ops = "auto";
  NumericsFlags numerics = {};
  uint32_t threads = 0;  // kernel threads; 0: the cores of this process
  uint32_t kv_mb = 256;  // memory for KV pages and states
  uint32_t prefill_chunk = 64;
  uint32_t flight_rows = 256;
  uint32_t flights = 2;
  bool prefix_cache = true;
  uint32_t request_timeout_ms = 300000;
};

class AttentionWorker {
 public:
  // `buffers` and `metrics` (may be null) outlive the worker.
  static absl::StatusOr<std::unique_ptr<AttentionWorker>> Create(AttentionWorkerOptions options,
                                                                 BufferPool* buffers, Metrics* metrics);
  ~AttentionWorker();  // stops
  AttentionWorker(const AttentionWorker&) = delete;
  AttentionWorker& operator=(const AttentionWorker&) = delete;

  void Start(AttentionShell::Hooks hooks);
  void Stop();  // idempotent; sessions must be closed

  AttentionShell* shell() { return shell_.get(); }
  const WorkerWelcome& welcome() const { return welcome_; }
  const RouterHello& hello() const { return hello_; }  // what it says to shards
  const BackendShape& shape() const { return backend_->shape(); }
  const Manifest& manifest() const { return manifest_; }
  const kernels::ServingOps& ops() const { return ops_; }
  uint32_t threads() const { return pool_->threads(); }
  // Every expert of the model has a replica in `view`.
  bool Covered(const PlacementView& view) const;

 private:
  AttentionWorker() = default;
  absl::Status MakeBackend(BufferPool* buffers);

  AttentionWorkerOptions options_;
  ModelSpec spec_;
  Manifest manifest_;
  std::unique_ptr<ModelStore> store_;
  NumericsChoice numerics_;
  kernels::ServingOps ops_;
  RouterHello hello_;
  WorkerWelcome welcome_;
  std::unique_ptr<KernelPool> pool_;
  std::unique_ptr<LayerBackend> backend_;
  std::unique_ptr<AttentionShell> shell_;
};

}  // namespace consilium
