#include "services/gateway/gateway_metrics.h"

namespace consilium::gateway {

GatewayMetrics::GatewayMetrics(Metrics* r, const std::string& model_name)
    : registry(r),
      model(model_name),
      first_token(r->Histogram("consilium_gateway_ttft_seconds", "From the request to its first token",
                               SecondsBuckets())),
      next_token(r->Histogram("consilium_gateway_itl_seconds", "Between two tokens of one choice",
                              SecondsBuckets())),
      request(r->Histogram("consilium_gateway_request_seconds", "From the request to the end of its answer",
                           SecondsBuckets())),
      vllm_first_token(r->Histogram("vllm:time_to_first_token_seconds", "Time to first token",
                                    SecondsBuckets(), {{"model_name", model}})),
      vllm_next_token(r->Histogram("vllm:time_per_output_token_seconds", "Time per output token",
                                   SecondsBuckets(), {{"model_name", model}})),
      vllm_request(r->Histogram("vllm:e2e_request_latency_seconds", "End to end request latency",
                                SecondsBuckets(), {{"model_name", model}})),
      prompt_tokens(
          r->Counter("consilium_gateway_prompt_tokens_total", "Prompt tokens of answered requests")),
      generated_tokens(
          r->Counter("consilium_gateway_generated_tokens_total", "Generated tokens of answered requests")),
      cached_tokens(
          r->Counter("consilium_gateway_cached_tokens_total", "Prompt tokens found in a prefix cache")),
      vllm_prompt_tokens(
          r->Counter("vllm:prompt_tokens_total", "Prefill tokens processed", {{"model_name", model}})),
      vllm_generated_tokens(
          r->Counter("vllm:generation_tokens_total", "Generation tokens processed", {{"model_name", model}})),
      disconnects(r->Counter("consilium_gateway_disconnects_total",
                             "Clients that went away before their answer was whole")),
      slow_readers(
          r->Counter("consilium_gateway_slow_readers_total", "Streams cut because the client did not read")),
      resumes(
          r->Counter("consilium_gateway_resumes_total", "Submissions sent again after a worker was lost")),
      exactness_violations(r->Counter("consilium_exactness_violations_total",
                                      "Results that must be equal and were not", {{"where", "gateway"}})),
      duplicate_tokens(
          r->Counter("consilium_gateway_duplicate_tokens_total", "Tokens computed twice and found equal")),
      open_streams(r->Gauge("consilium_gateway_open_requests", "Generation requests under way")),
      waiting_requests(
          r->Gauge("consilium_gateway_waiting_submissions", "Submissions that wait for a worker")),
      workers_ready(r->Gauge("consilium_gateway_workers_ready", "Attention workers with an open session")) {}

void GatewayMetrics::CountRequest(const std::string& endpoint, int status) {
  registry
      ->Counter("consilium_gateway_requests_total", "HTTP requests by endpoint and status",
                {{"endpoint", endpoint}, {"status", std::to_string(status)}})
      .Increment();
}
void GatewayMetrics::CountSuccess(const std::string& finish_reason) {
  registry
      ->Counter("vllm:request_success_total", "Finished choices by reason",
                {{"model_name", model}, {"finished_reason", finish_reason}})
      .Increment();
}
void GatewayMetrics::ObserveFirstToken(double seconds) {
  first_token.Observe(seconds);
  vllm_first_token.Observe(seconds);
}
void GatewayMetrics::ObserveNextToken(double seconds) {
  next_token.Observe(seconds);
  vllm_next_token.Observe(seconds);
}
void GatewayMetrics::ObserveRequest(double seconds) {
  request.Observe(seconds);
  vllm_request.Observe(seconds);
}
void GatewayMetrics::CountTokens(uint64_t prompt, uint64_t generated, uint64_t cached) {
  prompt_tokens.Increment(static_cast<double>(prompt));
  vllm_prompt_tokens.Increment(static_cast<double>(prompt));
  generated_tokens.Increment(static_cast<double>(generated));
  vllm_generated_tokens.Increment(static_cast<double>(generated));
  cached_tokens.Increment(static_cast<double>(cached));
}

}  // namespace consilium::gateway
