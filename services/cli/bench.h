// `consilium bench`: load on a running gateway. Closed loop: each of C clients has one request in flight on a
// connection of its own. Prompts are random token ids, different for each request, so that the prefix cache
// does not help.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "services/cli/api_client.h"

namespace consilium {

struct BenchOptions {
  ApiTarget target;
  std::vector<std::string> concurrency = {"1", "4", "16"};
  uint32_t prompt_tokens = 64;
  uint32_t output_tokens = 64;
  uint32_t requests = 0;       // a level; 0: 4 a client, at least 8
  uint32_t vocabulary = 1000;  // prompt ids are drawn from 10..vocabulary-1
  int64_t seed = 1;
  double temperature = 1;
  std::string json_file;
};

struct Summary {
  double mean = 0, p50 = 0, p99 = 0;
};
// Nearest rank; zeros for no samples.
Summary Summarise(std::vector<double> samples);

int RunBench(const BenchOptions& options);

}  // namespace consilium
