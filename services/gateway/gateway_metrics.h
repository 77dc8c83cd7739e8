// The gateway's metrics; names and units in docs/METRICS.md. Those other routers and boards know carry vLLM's
// names.
#pragma once
#include <string>

#include "common/metrics/metrics.h"

namespace consilium::gateway {

struct GatewayMetrics {
  GatewayMetrics(Metrics* registry, const std::string& model);

  // endpoint: "chat", "completions", "other"; status: the HTTP status.
  void CountRequest(const std::string& endpoint, int status);
  void CountSuccess(const std::string& finish_reason);
  void ObserveFirstToken(double seconds);
  void ObserveNextToken(double seconds);
  void ObserveRequest(double seconds);
  void CountTokens(uint64_t prompt, uint64_t generated, uint64_t cached);

  Metrics* const registry;
  const std::string model;
  prometheus::Histogram &first_token, &next_token, &request;
  prometheus::Histogram &vllm_first_token, &vllm_next_token, &vllm_request;
  prometheus::Counter &prompt_tokens, &generated_tokens, &cached_tokens;
  prometheus::Counter &vllm_prompt_tokens, &vllm_generated_tokens;
  prometheus::Counter &disconnects, &slow_readers, &resumes, &exactness_violations, &duplicate_tokens;
  prometheus::Gauge &open_streams, &waiting_requests, &workers_ready;
};

}  // namespace consilium::gateway
