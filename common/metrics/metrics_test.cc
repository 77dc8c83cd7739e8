#include "common/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace consilium {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsTest, TextHasHelpTypeAndValuesByLabel) {
  Metrics metrics;
  metrics.Counter("consilium_calls_total", "Calls.", {{"outcome", "ok"}}).Increment(3);
  metrics.Gauge("consilium_epoch", "Epoch.").Set(7);
  metrics.Histogram("consilium_rows", "Rows.", CountBuckets()).Observe(3);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("# HELP consilium_calls_total Calls.\n# TYPE consilium_calls_total counter\n"));
  EXPECT_THAT(text, HasSubstr("consilium_calls_total{outcome=\"ok\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("consilium_epoch 7\n"));
  EXPECT_THAT(text, HasSubstr("consilium_rows_bucket{le=\"2\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("consilium_rows_bucket{le=\"4\"} 1\n"));
}

TEST(MetricsTest, TheSameNameAndLabelsAreTheSameObject) {
  Metrics metrics;
  EXPECT_EQ(&metrics.Counter("c", "h", {{"a", "1"}}), &metrics.Counter("c", "h", {{"a", "1"}}));
  EXPECT_NE(&metrics.Counter("c", "h", {{"a", "1"}}), &metrics.Counter("c", "h", {{"a", "2"}}));
  EXPECT_EQ(&metrics.Histogram("h", "h", SecondsBuckets()), &metrics.Histogram("h", "h", SecondsBuckets()));
}

TEST(MetricsTest, NamesOfOtherSystemsWithAColonAreTaken) {
  Metrics metrics;
  metrics.Gauge("vllm:num_requests_running", "Running.").Set(2);
  EXPECT_THAT(metrics.Text(), HasSubstr("vllm:num_requests_running 2\n"));
}

TEST(MetricsTest, LabelSetsBeyondTheBoundCountUnderOther) {
  Metrics metrics;
  for (size_t i = 0; i < kLabelSetsMax + 5; ++i) {
    metrics.Counter("c", "h", {{"peer", std::to_string(i)}}).Increment();
  }
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("c{peer=\"" + std::to_string(kLabelSetsMax - 1) + "\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("c{peer=\"" + std::to_string(kLabelSetsMax) + "\"}")));
  EXPECT_THAT(text, HasSubstr("c{peer=\"other\"} 5\n"));
}

TEST(MetricsTest, CountsFromManyThreadsAreNotLost) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&metrics] {
      for (int i = 0; i < 500; ++i) metrics.Counter("c", "h", {{"k", std::to_string(i % 3)}}).Increment();
    });
  }
  for (auto& thread : threads) thread.join();
  double sum = 0;
  for (int k = 0; k < 3; ++k) sum += metrics.Counter("c", "h", {{"k", std::to_string(k)}}).Value();
  EXPECT_EQ(sum, 2000);
}

TEST(MetricsDeathTest, OneNameWithTwoTypesIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Metrics metrics;
  metrics.Counter("same", "h");
  EXPECT_DEATH(metrics.Gauge("same", "h"), "metric same");
}

}  // namespace
}  // namespace consilium
