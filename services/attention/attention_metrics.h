// The worker's counters and distributions as Prometheus metrics (docs/METRICS.md).
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/metrics/metrics.h"
#include "services/attention/attention_core.h"

namespace consilium {

class AttentionMetrics {
 public:
  explicit AttentionMetrics(Metrics* metrics);  // outlives *this
  void Observe(const attention_action::Observe& o);
  // Brings counters and gauges to `stats`. One caller at a time.
  void Update(const AttentionStats& stats, const BackendShape& shape);
  // Open streams by (name of the shard, transport); what is not in it has none. One caller at a time.
  using Streams = std::map<std::pair<std::string, std::string>, int>;
  void SetStreams(const Streams& open);

 private:
  void Count(const std::string& name, const std::string& help, const Labels& labels, uint64_t value);
  void Set(const std::string& name, const std::string& help, const Labels& labels, double value);

  Metrics* const metrics_;
  std::vector<prometheus::Histogram*> histograms_;  // by Metric
  std::map<std::string, uint64_t> last_;            // what counters had at the last update
  Streams streams_;                                 // seen so far
};

}  // namespace consilium
