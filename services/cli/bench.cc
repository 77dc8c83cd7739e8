#include "services/cli/bench.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "common/base/status.h"

namespace consilium {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

struct Level {
  uint32_t concurrency = 0;
  uint32_t requests = 0;
  uint32_t failed = 0;
  std::string first_error;
  double seconds = 0;
  uint64_t prompt_tokens = 0, output_tokens = 0;
  std::vector<double> ttft_s, itl_s, request_s;
};

std::vector<uint32_t> Prompt(const BenchOptions& options, uint64_t request) {
  std::mt19937_64 random(static_cast<uint64_t>(options.seed) * 1000003 + request);
  std::vector<uint32_t> ids(options.prompt_tokens);
  for (uint32_t& id : ids) id = 10 + static_cast<uint32_t>(random() % (options.vocabulary - 10));
  return ids;
}

void Client(const BenchOptions& options, uint64_t first_request, std::atomic<uint32_t>* next, Level* level,
            std::mutex* mutex) {
  auto api = ApiClient::Open(options.target);
  for (uint32_t i; (i = next->fetch_add(1)) < level->requests;) {
    const uint64_t request = first_request + i;
    const std::vector<uint32_t> prompt = Prompt(options, request);
    std::vector<double> gaps;
    double ttft = 0;
    const Clock::time_point begin = Clock::now();
    Clock::time_point last = begin;
    absl::StatusOr<StreamUsage> usage = StreamUsage{};
    if (!api.ok()) {
      usage = api.status();
    } else {
      usage = (*api)->Complete(
          prompt, options.output_tokens, static_cast<int64_t>(request), options.temperature, [&] {
            const Clock::time_point now = Clock::now();
            last == begin ? ttft = Seconds(now - begin) : (gaps.push_back(Seconds(now - last)), 0.0);
            last = now;
          });
    }
    std::lock_guard<std::mutex> lock(*mutex);
    if (!usage.ok()) {
      if (level->failed++ == 0) level->first_error = Message(usage.status());
      continue;
    }
    level->request_s.push_back(Seconds(Clock::now() - begin));
    level->ttft_s.push_back(ttft);
    level->itl_s.insert(level->itl_s.end(), gaps.begin(), gaps.end());
    level->prompt_tokens += usage->prompt_tokens;
    level->output_tokens += usage->completion_tokens;
  }
}

Level RunLevel(const BenchOptions& options, uint32_t concurrency, uint64_t first_request) {
  Level level;
  level.concurrency = concurrency;
  level.requests = options.requests != 0 ? options.requests : std::max(8u, 4 * concurrency);
  std::atomic<uint32_t> next{0};
  std::mutex mutex;
  const Clock::time_point begin = Clock::now();
  std::vector<std::thread> clients;
  for (uint32_t c = 0; c < concurrency; ++c) {
    clients.emplace_back([&] { Client(options, first_request, &next, &level, &mutex); });
  }
  for (std::thread& t : clients) t.join();
  level.seconds = Seconds(Clock::now() - begin);
  return level;
}

nlohmann::ordered_json ToJson(const Summary& s) { return {{"mean", s.mean}, {"p50", s.p50}, {"p99", s.p99}}; }

nlohmann::ordered_json ToJson(const Level& level) {
  return {
      {"concurrency", level.concurrency},
      {"requests", level.requests},
      {"failed", level.failed},
      {"seconds", level.seconds},
      {"prompt_tokens", level.prompt_tokens},
      {"output_tokens", level.output_tokens},
      {"output_tokens_per_s", static_cast<double>(level.output_tokens) / level.seconds},
      {"total_tokens_per_s", static_cast<double>(level.output_tokens + level.prompt_tokens) / level.seconds},
      {"ttft_s", ToJson(Summarise(level.ttft_s))},
      {"itl_s", ToJson(Summarise(level.itl_s))},
      {"request_s", ToJson(Summarise(level.request_s))}};
}

int Fail(const std::string& text) {
  std::fprintf(stderr, "consilium bench: %s\n", text.c_str());
  return 1;
}

}  // namespace

Summary Summarise(std::vector<double> samples) {
  Summary out;
  if (samples.empty()) return out;
  std::sort(samples.begin(), samples.end());
  for (const double s : samples) out.mean += s;
  out.mean /= static_cast<double>(samples.size());
  const auto rank = [&](double q) {
    const auto index = static_cast<size_t>(std::ceil(q * static_cast<double>(samples.size())));
    return samples[std::clamp<size_t>(index, 1, samples.size()) - 1];
  };
  out.p50 = rank(0.5);
  out.p99 = rank(0.99);
  return out;
}

int RunBench(const BenchOptions& options) {
  std::vector<uint32_t> levels;
  for (const std::string& text : options.concurrency) {
    uint32_t n = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), n);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size() || n < 1 || n > 1024) {
      return Fail("--concurrency: expected integers in 1..1024, got \"" + text + "\"");
    }
    levels.push_back(n);
  }
  auto api = ApiClient::Open(options.target);
  if (!api.ok()) return Fail(Message(api.status()));
  BenchOptions fixed = options;
  fixed.target.model = (*api)->model();
  if (const auto warm = (*api)->Complete(Prompt(fixed, 0), 2, 1, 0.0, [] {}); !warm.ok())
    return Fail(Message(warm.status()));

  nlohmann::ordered_json json = {{"url", fixed.target.url},
                                 {"model", fixed.target.model},
                                 {"prompt_tokens", fixed.prompt_tokens},
                                 {"output_tokens", fixed.output_tokens},
                                 {"seed", fixed.seed},
                                 {"levels", nlohmann::ordered_json::array()}};
  std::printf("model %s, prompts of %u tokens, %u tokens out\n", fixed.target.model.c_str(),
              fixed.prompt_tokens, fixed.output_tokens);
  std::printf("%7s %9s %7s %9s | %18s | %18s\n", "streams", "requests", "failed", "tok/s",
              "TTFT ms p50 / p99", "ITL ms p50 / p99");
  uint64_t first_request = 1;
  uint32_t failed = 0;
  std::string first_error;
  for (const uint32_t concurrency : levels) {
    const Level level = RunLevel(fixed, concurrency, first_request);
    first_request += level.requests;
    const Summary ttft = Summarise(level.ttft_s), itl = Summarise(level.itl_s);
    std::printf("%7u %9u %7u %9.1f | %8.1f /%8.1f | %8.2f /%8.2f\n", level.concurrency, level.requests,
                level.failed, static_cast<double>(level.output_tokens) / level.seconds, ttft.p50 * 1e3,
                ttft.p99 * 1e3, itl.p50 * 1e3, itl.p99 * 1e3);
    std::fflush(stdout);
    json["levels"].push_back(ToJson(level));
    failed += level.failed;
    if (first_error.empty()) first_error = level.first_error;
  }
  if (!options.json_file.empty()) {
    std::ofstream file(options.json_file);
    file << json.dump(2) << '\n';
    file.close();
    if (!file) return Fail("--json: cannot write " + options.json_file);
  }
  return failed == 0 ? 0 : Fail(std::to_string(failed) + " requests failed; the first: " + first_error);
}

}  // namespace consilium
