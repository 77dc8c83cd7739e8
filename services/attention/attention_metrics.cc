#include "services/attention/attention_metrics.h"

namespace consilium {

AttentionMetrics::AttentionMetrics(Metrics* metrics) : metrics_(metrics) {
  struct Named {
    const char* name;
    const char* help;
    const std::vector<double>& buckets;
  };
  // In the order of attention_action::Metric.
  const Named all[] = {
      {"consilium_attention_queue_wait_seconds", "Time from submission to admission, s.", SecondsBuckets()},
      {"consilium_attention_batch_rows", "Rows of a flight.", CountBuckets()},
      {"consilium_attention_call_seconds", "Round trip of an expert call, s.", SecondsBuckets()},
      {"consilium_attention_call_rows", "Rows of an expert call.", CountBuckets()},
      {"consilium_dispatch_requests_per_frame", "Distinct requests in one CALL frame.", CountBuckets()},
      {"consilium_attention_stage_seconds", "Compute time of one stage, s.", SecondsBuckets()},
      {"consilium_attention_request_seconds", "Time from submission to the end of a request, s.",
       SecondsBuckets()},
  };
  for (const Named& n : all) histograms_.push_back(&metrics_->Histogram(n.name, n.help, n.buckets));
}

void AttentionMetrics::Observe(const attention_action::Observe& o) {
  histograms_[static_cast<size_t>(o.metric)]->Observe(o.value);
}

void AttentionMetrics::Count(const std::string& name, const std::string& help, const Labels& labels,
                             uint64_t value) {
  std::string key = name;
  for (const auto& [k, v] : labels) key += "," + k + "=" + v;
  uint64_t& last = last_[key];
  // A shard that came back starts at 0 again.
  metrics_->Counter(name, help, labels).Increment(static_cast<double>(value >= last ? value - last : value));
  last = value;
}

void AttentionMetrics::Set(const std::string& name, const std::string& help, const Labels& labels,
                           double value) {
  metrics_->Gauge(name, help, labels).Set(value);
}

void AttentionMetrics::Update(const AttentionStats& s, const BackendShape& shape) {
  const std::string requests = "consilium_attention_requests_total",
                    requests_help = "Requests by how they ended.";
  Count(requests, requests_help, {{"outcome", "finished"}}, s.requests_finished);
  Count(requests, requests_help, {{"outcome", "failed"}}, s.requests_failed);
  Count(requests, requests_help, {{"outcome", "cancelled"}}, s.requests_cancelled);
  Count(requests, requests_help, {{"outcome", "refused"}}, s.requests_refused);
  const std::string tokens = "consilium_attention_tokens_total",
                    tokens_help = "Tokens computed (prompt) and sampled.";
  Count(tokens, tokens_help, {{"kind", "prompt"}}, s.prompt_tokens);
  Count(tokens, tokens_help, {{"kind", "generated"}}, s.generated_tokens);
  Count("consilium_attention_flights_total", "Micro-batches computed.", {}, s.flights);
  Count("consilium_attention_resends_total", "Expert calls sent again.", {}, s.resends);
  Count("consilium_attention_duplicates_total", "Slots answered twice.", {}, s.duplicates);
  Count("consilium_exactness_violations_total", "Slots answered twice with other bits.", {}, s.mismatches);
  Set("consilium_attention_flights", "Micro-batches in the air.", {}, s.flights_now);
  Set("consilium_attention_calls", "Expert calls not yet answered.", {}, s.calls_now);
  Set("consilium_attention_calls_queued", "Expert calls waiting for credit.", {}, s.calls_queued);
  Set("consilium_attention_placement_epoch", "Epoch of the placement in use.", {},
      static_cast<double>(s.epoch));
  const std::string kv = "consilium_attention_kv_blocks", kv_help = "Pages of the KV arena.";
  Set(kv, kv_help, {{"state", "used"}}, s.kv_blocks_used);
  Set(kv, kv_help, {{"state", "cached"}}, s.kv_blocks_cached);
  Set(kv, kv_help, {{"state", "total"}}, s.kv_blocks_total);
  const std::string slots = "consilium_attention_state_slots", slots_help = "Slots of recurrent states.";
  Set(slots, slots_help, {{"state", "used"}}, s.state_slots_used);
  Set(slots, slots_help, {{"state", "cached"}}, s.state_slots_idle);
  Set(slots, slots_help, {{"state", "total"}}, s.state_slots_total);
  for (const ShardStats& shard : s.shards) {
    const std::string calls = "consilium_attention_calls_total",
                      calls_help = "Expert calls by shard and outcome.";
    Count(calls, calls_help, {{"shard", shard.name}, {"outcome", "result"}}, shard.results);
    Count(calls, calls_help, {{"shard", shard.name}, {"outcome", "reject"}}, shard.rejects);
    Count(calls, calls_help, {{"shard", shard.name}, {"outcome", "lost"}}, shard.lost);
    const std::string bytes = "consilium_attention_call_bytes_total",
                      bytes_help = "Bytes to and from a shard.";
    Count(bytes, bytes_help, {{"shard", shard.name}, {"direction", "out"}}, shard.bytes_out);
    Count(bytes, bytes_help, {{"shard", shard.name}, {"direction", "in"}}, shard.bytes_in);
    Set("consilium_attention_shard_up", "Both lanes of a shard are open.", {{"shard", shard.name}},
        shard.up[0] && shard.up[1] ? 1 : 0);
  }
  for (size_t i = 0; i < s.expert_rows.size(); ++i) {
    if (s.expert_rows[i] == 0) continue;
    Count("consilium_attention_expert_rows_total", "Rows routed to an expert.",
          {{"layer", std::to_string(i / shape.experts)}, {"expert", std::to_string(i % shape.experts)}},
          s.expert_rows[i]);
  }
  // The common ones under vLLM's names, so that existing routers and boards work.
  Set("vllm:num_requests_running", "Requests admitted.", {}, s.requests_running);
  Set("vllm:num_requests_waiting", "Requests waiting to be admitted.", {}, s.requests_waiting);
  Set("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", {},
      s.kv_blocks_total == 0 ? 0 : static_cast<double>(s.kv_blocks_used) / s.kv_blocks_total);
  Count("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", {},
        s.prefix_queries);
  Count("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", {}, s.prefix_hits);
  Count("vllm:num_preemptions_total", "Sequences preempted for KV pages.", {}, s.preemptions);
}

void AttentionMetrics::SetStreams(const Streams& open) {
  for (auto& [key, count] : streams_) count = 0;
  for (const auto& [key, count] : open) streams_[key] = count;
  for (const auto& [key, count] : streams_) {
    Set("consilium_attention_shard_streams", "Open streams to a shard, one a lane, by transport.",
        {{"shard", key.first}, {"transport", key.second}}, count);
  }
}

}  // namespace consilium
