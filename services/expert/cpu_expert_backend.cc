#include "services/expert/cpu_expert_backend.h"

#include <cstdint>
#include <string>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/model/stored_matrix.h"

namespace consilium {
namespace {

std::string Name(const ExpertEntry& entry) {
  return "expert " + std::to_string(entry.expert.value) + " of layer " + std::to_string(entry.layer.value);
}

}  // namespace

CpuExpertOptions ExpertOptionsOf(const ModelSpec& spec) {
  CpuExpertOptions o;
  o.hidden = spec.hidden;
  o.inter = spec.expert_inter;
  o.activation = spec.activation;
  o.swiglu_alpha = spec.swiglu_alpha;
  o.swiglu_limit = spec.swiglu_limit;
  return o;
}

CpuExpertBackend::CpuExpertBackend(CpuExpertOptions options, const kernels::Ops* ops, KernelPool* pool)
    : options_(std::move(options)), ops_(*ops), pool_(pool) {}

absl::StatusOr<ExpertHandle> CpuExpertBackend::Load(const ExpertEntry& entry, ModelStore* store) {
  const uint64_t inter = options_.inter, hidden = options_.hidden;
  for (int i = 0; i < 3; ++i) {
    const std::vector<uint64_t> expected =
        i == 2 ? std::vector<uint64_t>{hidden, inter} : std::vector<uint64_t>{inter, hidden};
    if (entry.parts[i].shape != expected) {
      return InvalidArgument(Name(entry) + ": tensor \"" + entry.parts[i].name + "\" does not fit hidden " +
                             std::to_string(hidden) + ", intermediate " + std::to_string(inter));
    }
  }
  auto weights = std::make_shared<kernels::FfnWeights>();
  kernels::QuantError error;
  ASSIGN_OR_RETURN(*weights, LoadExpert(entry, store, options_.numerics.weights_as, &error));
  weights->activation = options_.activation;
  weights->alpha = options_.swiglu_alpha;
  weights->limit = options_.swiglu_limit;
  const std::lock_guard lock(mutex_);
  loaded_bytes_ += weights->bytes();
  quant_error_.Add(error);
  experts_.emplace(next_handle_, std::move(weights));
  return next_handle_++;
}

void CpuExpertBackend::Drop(ExpertHandle expert) {
  const std::lock_guard lock(mutex_);
  const auto it = experts_.find(expert);
  CHECK_MSG(it != experts_.end(), "no expert with handle " + std::to_string(expert));
  loaded_bytes_ -= it->second->bytes();
  experts_.erase(it);
}

uint64_t CpuExpertBackend::loaded_bytes() const {
  const std::lock_guard lock(mutex_);
  return loaded_bytes_;
}

kernels::QuantError CpuExpertBackend::quant_error() const {
  const std::lock_guard lock(mutex_);
  return quant_error_;
}

uint32_t CpuExpertBackend::row_bytes_in() const {
  return options_.numerics.integer_rows ? static_cast<uint32_t>(kernels::WireRowBytes(options_.hidden))
                                        : row_bytes_out();
}

absl::Status CpuExpertBackend::Prepare(const GroupedFfnJob& job) {
  groups_.clear();
  rows_.clear();
  const std::lock_guard lock(mutex_);
  for (const ExpertGroup& g : job.groups) {
    const auto it = experts_.find(g.expert);
    if (it == experts_.end()) return FailedPrecondition("no expert with handle " + std::to_string(g.expert));
    if (size_t{g.first} + g.count > job.rows.size()) return Internal("a group reaches beyond the job's rows");
    in_use_.push_back(it->second);
    groups_.push_back({it->second.get(), g.first, g.count});
  }
  for (const ExpertRow& row : job.rows) {
    const bool integers = options_.numerics.integer_rows;
    if ((!integers && reinterpret_cast<uintptr_t>(row.in) % alignof(float) != 0) ||
        reinterpret_cast<uintptr_t>(row.out) % alignof(float) != 0) {
      return InvalidArgument("rows of f32 must lie at multiples of 4 bytes");
    }
    rows_.push_back({integers ? nullptr : reinterpret_cast<const float*>(row.in),
                     reinterpret_cast<float*>(row.out), integers ? row.in : nullptr});
  }
  return absl::OkStatus();
}

void CpuExpertBackend::Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) {
  CHECK_MSG(!running_, "a job is under way");
  running_ = true;
  done_ = std::move(done);
  result_ = FfnDone{};
  result_.status = Prepare(job);
  const auto work = [this] {
    if (result_.status.ok()) {
      const MonoTime begin = NowUs();
      grouped_ffn_.Run(ops_, pool_, groups_, rows_, options_.numerics.arithmetic);
      result_.compute_us = static_cast<uint32_t>(NowUs() - begin);
    }
    const auto finish = [this] {
      running_ = false;
      in_use_.clear();
      const auto callback = std::move(done_);
      callback(result_);
    };
    options_.post_done ? options_.post_done(finish) : finish();
  };
  options_.run_compute ? options_.run_compute(work) : work();
}

}  // namespace consilium
