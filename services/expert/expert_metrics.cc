#include "services/expert/expert_metrics.h"

namespace consilium {

ExpertMetrics::ExpertMetrics(Metrics* m, uint32_t layers, uint32_t experts) : metrics_(m), experts_(experts) {
  const auto bytes = [m](const char* direction) {
    return &m->Counter("consilium_expert_bytes_total", "Frame bytes of calls and results.",
                       {{"direction", direction}});
  };
  bytes_in_ = bytes("in");
  bytes_out_ = bytes("out");
  const char* lanes[kLanes] = {"decode", "bulk"};
  for (size_t i = 0; i < kLanes; ++i) {
    rows_in_[i] =
        &m->Counter("consilium_expert_rows_received_total", "Rows of accepted calls.", {{"lane", lanes[i]}});
  }
  slots_ = &m->Counter("consilium_expert_rows_total", "Rows computed, one per (row, expert).");
  jobs_ = &m->Counter("consilium_expert_jobs_total", "Grouped FFNs run.");
  failed_jobs_ = &m->Counter("consilium_expert_failed_jobs_total", "Grouped FFNs that failed.");
  results_ = &Outcome("result");
  job_rows_ = &m->Histogram("consilium_expert_job_rows", "Rows of one grouped FFN.", CountBuckets());
  job_frames_ =
      &m->Histogram("consilium_expert_job_frames", "Calls joined in one grouped FFN.", CountBuckets());
  group_rows_ =
      &m->Histogram("consilium_expert_group_rows", "Rows of one expert in a grouped FFN.", CountBuckets());
  queue_seconds_ =
      &m->Histogram("consilium_expert_queue_seconds", "From a call's arrival to its job.", SecondsBuckets());
  service_seconds_ =
      &m->Histogram("consilium_expert_service_seconds", "Compute time of a grouped FFN.", SecondsBuckets());
  ready_ = &m->Gauge("consilium_expert_experts_ready", "Experts that serve calls.");
  loaded_bytes_ = &m->Gauge("consilium_expert_loaded_bytes", "Bytes of expert weights held or being loaded.");
  queued_rows_ = &m->Gauge("consilium_expert_queued_rows", "Rows waiting for a job.");
  open_calls_ = &m->Gauge("consilium_expert_open_calls", "Calls not yet answered.");
  streams_ = &m->Gauge("consilium_expert_streams", "Open router streams.");
  expert_rows_.resize(size_t{layers} * experts);
}

prometheus::Counter& ExpertMetrics::Outcome(std::string_view outcome) {
  return metrics_->Counter("consilium_expert_calls_total", "Calls by outcome.",
                           {{"outcome", std::string(outcome)}});
}

void ExpertMetrics::OnCallIn(Lane lane, uint32_t rows, uint32_t, size_t bytes) {
  rows_in_[static_cast<size_t>(lane)]->Increment(rows);
  bytes_in_->Increment(static_cast<double>(bytes));
}

void ExpertMetrics::OnJobStart(uint32_t frames, uint32_t slots, std::span<const ExpertGroup> groups,
                               std::span<const ExpertKey> keys) {
  jobs_->Increment();
  slots_->Increment(slots);
  job_rows_->Observe(slots);
  job_frames_->Observe(frames);
  for (size_t i = 0; i < groups.size(); ++i) {
    group_rows_->Observe(groups[i].count);
    prometheus::Counter*& rows = expert_rows_[size_t{keys[i].layer.value} * experts_ + keys[i].expert.value];
    if (rows == nullptr) {
      rows = &metrics_->Counter(
          "consilium_expert_expert_rows_total", "Rows computed, by expert.",
          {{"layer", std::to_string(keys[i].layer.value)}, {"expert", std::to_string(keys[i].expert.value)}});
    }
    rows->Increment(groups[i].count);
  }
}

void ExpertMetrics::OnJobDone(uint32_t compute_us, bool ok) {
  service_seconds_->Observe(compute_us * 1e-6);
  if (!ok) failed_jobs_->Increment();
}

void ExpertMetrics::OnResult(uint32_t queue_us, uint32_t, size_t bytes) {
  results_->Increment();
  queue_seconds_->Observe(queue_us * 1e-6);
  bytes_out_->Increment(static_cast<double>(bytes));
}

void ExpertMetrics::OnReject(frame::RejectCode code) { Outcome(frame::RejectName(code)).Increment(); }
void ExpertMetrics::OnDropped(const char* why) { Outcome(why).Increment(); }

void ExpertMetrics::Set(const ExpertCore& core) {
  ready_->Set(core.experts_ready());
  loaded_bytes_->Set(static_cast<double>(core.loaded_bytes()));
  queued_rows_->Set(core.queued_rows());
  open_calls_->Set(static_cast<double>(core.calls_open()));
  streams_->Set(static_cast<double>(core.streams()));
}

}  // namespace consilium
