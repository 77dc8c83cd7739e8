// Metrics of a process, exported in Prometheus' text format by prometheus-cpp. Names, types and units:
// docs/METRICS.md. Label sets are bounded: a family takes at most kLabelSetsMax sets, later ones count under
// "other".
#pragma once
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace consilium {

using Labels = std::map<std::string, std::string>;
inline constexpr size_t kLabelSetsMax = 200;

class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Thread-safe; the same (name, labels) gives the same object, which lives as long as *this. Keep the
  // reference: the look-up takes a lock.
  prometheus::Counter& Counter(std::string_view name, std::string_view help, const Labels& labels = {});
  prometheus::Gauge& Gauge(std::string_view name, std::string_view help, const Labels& labels = {});
  prometheus::Histogram& Histogram(std::string_view name, std::string_view help,
                                   const std::vector<double>& buckets, const Labels& labels = {});
  std::string Text() const;  // exposition format 0.0.4

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Bucket bounds: seconds from 50 us to 60 s; small counts 1, 2, 4 ... 4096.
const std::vector<double>& SecondsBuckets();
const std::vector<double>& CountBuckets();

}  // namespace consilium
