// The shard's metrics (consilium_expert_*), fed by the core's observer. docs/METRICS.md lists them.
#pragma once
#include <string>
#include <vector>

#include "common/metrics/metrics.h"
#include "services/expert/expert_core.h"

namespace consilium {

class ExpertMetrics final : public ExpertObserver {
 public:
  ExpertMetrics(Metrics* metrics, uint32_t layers, uint32_t experts);

  void OnCallIn(Lane lane, uint32_t rows, uint32_t slots, size_t bytes) override;
  void OnJobStart(uint32_t frames, uint32_t slots, std::span<const ExpertGroup> groups,
                  std::span<const ExpertKey> keys) override;
  void OnJobDone(uint32_t compute_us, bool ok) override;
  void OnResult(uint32_t queue_us, uint32_t slots, size_t bytes) override;
  void OnReject(frame::RejectCode code) override;
  void OnDropped(const char* why) override;

  // Gauges, after each batch of events.
  void Set(const ExpertCore& core);

 private:
  prometheus::Counter& Outcome(std::string_view outcome);

  Metrics* const metrics_;
  const uint32_t experts_;
  prometheus::Counter *bytes_in_, *bytes_out_, *rows_in_[kLanes], *slots_, *jobs_, *failed_jobs_, *results_;
  prometheus::Histogram *job_rows_, *job_frames_, *group_rows_, *queue_seconds_, *service_seconds_;
  prometheus::Gauge *ready_, *loaded_bytes_, *queued_rows_, *open_calls_, *streams_;
  std::vector<prometheus::Counter*> expert_rows_;  // [layers * experts], made at first use
};

}  // namespace consilium
