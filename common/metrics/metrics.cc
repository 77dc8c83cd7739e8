#include "common/metrics/metrics.h"

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <set>

#include "common/base/status.h"

namespace consilium {
namespace {

template <class T>
struct FamilyState {
  prometheus::Family<T>* family = nullptr;
  std::set<Labels> seen;

  // The given labels, or all values "other" once the family is full.
  Labels Bounded(const Labels& labels) {
    if (seen.count(labels) != 0) return labels;
    if (seen.size() < kLabelSetsMax) {
      seen.insert(labels);
      return labels;
    }
    Labels other = labels;
    for (auto& [key, value] : other) value = "other";
    return other;
  }
};

}  // namespace

struct Metrics::Impl {
  mutable std::mutex mutex;
  prometheus::Registry registry;
  std::map<std::string, FamilyState<prometheus::Counter>, std::less<>> counters;
  std::map<std::string, FamilyState<prometheus::Gauge>, std::less<>> gauges;
  std::map<std::string, FamilyState<prometheus::Histogram>, std::less<>> histograms;

  // A bad name, or one name with two types, is a bug of the caller: prometheus-cpp throws, and we stop.
  template <class T, class Builder, class... Args>
  T& Get(std::map<std::string, FamilyState<T>, std::less<>>* families, Builder builder, std::string_view name,
         std::string_view help, const Labels& labels, const Args&... args) {
    std::lock_guard<std::mutex> lock(mutex);
    try {
      FamilyState<T>& state = (*families)[std::string(name)];
      if (state.family == nullptr) {
        state.family = &builder().Name(std::string(name)).Help(std::string(help)).Register(registry);
      }
      return state.family->Add(state.Bounded(labels), args...);
    } catch (const std::exception& error) {
      CHECK_MSG(false, "metric " + std::string(name) + ": " + error.what());
    }
    __builtin_unreachable();
  }
};

Metrics::Metrics() : impl_(new Impl) {}
Metrics::~Metrics() = default;

prometheus::Counter& Metrics::Counter(std::string_view name, std::string_view help, const Labels& labels) {
  return impl_->Get(&impl_->counters, prometheus::BuildCounter, name, help, labels);
}

prometheus::Gauge& Metrics::Gauge(std::string_view name, std::string_view help, const Labels& labels) {
  return impl_->Get(&impl_->gauges, prometheus::BuildGauge, name, help, labels);
}

prometheus::Histogram& Metrics::Histogram(std::string_view name, std::string_view help,
                                          const std::vector<double>& buckets, const Labels& labels) {
  return impl_->Get(&impl_->histograms, prometheus::BuildHistogram, name, help, labels, buckets);
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

const std::vector<double>& SecondsBuckets() {
  static const std::vector<double>* buckets =
      new std::vector<double>{50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3,
                              0.1,   0.2,    0.5,    1,      2,    5,    10,   20,    60};
  return *buckets;
}

const std::vector<double>& CountBuckets() {
  static const std::vector<double>* buckets =
      new std::vector<double>{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
  return *buckets;
}

}  // namespace consilium
