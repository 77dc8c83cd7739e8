// ExpertBackend on CPU kernels: rows of f32 out (4 H bytes), in f32 or, where the class says so, quantised
// once by the router (WireRowBytes). The same class over kernels/ref is the reference.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "common/exec/kernel_pool.h"
#include "common/model/model_spec.h"
#include "common/model/numerics_choice.h"
#include "kernels/api/kernels.h"
#include "services/expert/expert_backend.h"

namespace consilium {

struct CpuExpertOptions {
  uint32_t hidden = 0, inter = 0;  // of every expert
  kernels::Activation activation = kernels::Activation::kSilu;
  float swiglu_alpha = 0, swiglu_limit = 0;  // Activation::kSwigluClamped
  // Runs work on the compute thread, one at a time, in order. Null: inline.
  std::function<void(std::function<void()>)> run_compute;
  // Brings a completion to the strand. Null: inline.
  std::function<void(std::function<void()>)> post_done;
  NumericsChoice numerics = {};
};
// Sizes and activation of the model's experts.
CpuExpertOptions ExpertOptionsOf(const ModelSpec& spec);

class CpuExpertBackend final : public ExpertBackend {
 public:
  // `ops` and `pool` (null: one thread) outlive the backend; a running job must have ended before it dies.
  CpuExpertBackend(CpuExpertOptions options, const kernels::Ops* ops, KernelPool* pool);

  uint32_t row_bytes_in() const override;
  uint32_t row_bytes_out() const override { return options_.hidden * static_cast<uint32_t>(sizeof(float)); }
  absl::StatusOr<ExpertHandle> Load(const ExpertEntry& entry, ModelStore* store) override;
  void Drop(ExpertHandle expert) override;
  uint64_t loaded_bytes() const override;
  kernels::QuantError quant_error() const;  // of all experts quantised at load so far
  void Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) override;

 private:
  absl::Status Prepare(const GroupedFfnJob& job);

  const CpuExpertOptions options_;
  const kernels::Ops& ops_;
  KernelPool* const pool_;

  mutable std::mutex mutex_;  // the table: loader threads add, the strand drops and looks up
  // Shared with a running job, so that dropping an expert while it computes is harmless.
  std::map<ExpertHandle, std::shared_ptr<const kernels::FfnWeights>> experts_;
  ExpertHandle next_handle_ = 1;
  uint64_t loaded_bytes_ = 0;
  kernels::QuantError quant_error_;

  // The job under way.
  bool running_ = false;
  std::vector<std::shared_ptr<const kernels::FfnWeights>> in_use_;
  std::vector<kernels::FfnGroup> groups_;
  std::vector<kernels::FfnRow> rows_;
  kernels::GroupedFfn grouped_ffn_;
  std::function<void(FfnDone)> done_;
  FfnDone result_;
};

}  // namespace consilium
