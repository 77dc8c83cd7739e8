// An expert shard without a door: model, kernels, backend and shell of one process or, in one-process mode,
// of one shard in it. Doors (gRPC, in-process) drive shard() as a FrameServer.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exec/kernel_pool.h"
#include "common/metrics/metrics.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/net/control_messages.h"
#include "kernels/api/serving_ops.h"
#include "services/expert/cpu_expert_backend.h"
#include "services/expert/expert_shard.h"

namespace consilium {

struct ExpertHostOptions {
  std::string model;      // folder
  std::string state_dir;  // "": the manifest is computed at each start
  std::string ops = "auto";
  NumericsFlags numerics = {};
  uint32_t threads = 0;      // kernel threads; 0: the cores of this process
  uint32_t capacity_mb = 0;  // of expert weights; 0: no limit
  // Of ExpertShard::Config; may be null.
  std::function<void(ExpertKey, HostState)> on_host_changed;
  std::function<void(const expert_action::OpDone&)> on_op_done;
};

class ExpertHost {
 public:
  // `pool` and `metrics` (may be null) outlive the host.
  static absl::StatusOr<std::unique_ptr<ExpertHost>> Create(ExpertHostOptions options, BufferPool* pool,
                                                            Metrics* metrics);
  ExpertHost(const ExpertHost&) = delete;
  ExpertHost& operator=(const ExpertHost&) = delete;

  ExpertShard* shard() { return shard_.get(); }
  const Manifest& manifest() const { return manifest_; }
  const kernels::ServingOps& ops() const { return ops_; }
  const NumericsChoice& numerics() const { return numerics_; }
  uint32_t threads() const { return kernel_pool_->threads(); }
  uint64_t incarnation() const { return incarnation_; }
  // All but name and addresses.
  control::MemberIdentity Identity() const;
  std::vector<control::MoeLayer> MoeLayers() const;
  // Loads the given experts without a controller.
  void Load(std::vector<ExpertKey> experts);
  // The same, until all are ready; the first failure's text otherwise. Not with a controller.
  absl::Status LoadAndWait(std::vector<ExpertKey> experts);
  std::vector<ExpertKey> AllExperts() const;

 private:
  ExpertHost() = default;
  ExpertCoreOptions CoreOptions() const;

  void OnOpDone(const expert_action::OpDone& done);
  void LogQuantError();

  ExpertHostOptions options_;
  std::mutex mutex_;  // of the op that LoadAndWait waits for
  std::condition_variable op_done_;
  uint64_t awaited_op_ = 0;
  std::optional<absl::Status> awaited_;
  ModelSpec spec_;
  Manifest manifest_;
  std::unique_ptr<ModelStore> store_;
  NumericsChoice numerics_;
  kernels::ServingOps ops_;
  double quant_error_logged_ = 0;  // QuantError::reference then
  uint64_t incarnation_ = 0;
  uint64_t next_op_ = 1;
  std::unique_ptr<KernelPool> kernel_pool_;
  std::unique_ptr<CpuExpertBackend> backend_;
  std::unique_ptr<ExpertShard> shard_;
};

}  // namespace consilium
