// The gateway's side of one attention worker: submissions one way, each step's tokens of all streams the
// other way. Plain structs, so that an in-process worker and a gRPC session look the same. Fields are those
// of attention.proto.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"

namespace consilium::gateway {

struct LogitBias {
  TokenId token = 0;
  float bias = 0;
};

struct SamplingOptions {
  uint64_t seed = 0;
  double temperature = 1;  // 0: greedy
  double top_p = 1;
  uint32_t top_k = 0;  // 0: off
  double min_p = 0;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double repetition_penalty = 1;
  std::vector<LogitBias> logit_bias;
};

struct AttentionRequest {
  uint64_t request = 0;  // unique in this process; the same in every attempt
  std::string request_id;
  uint32_t attempt = 0;
  std::string tenant;
  std::string manifest;  // 32 bytes, as the worker's welcome said
  std::vector<TokenId> prompt;
  std::vector<std::vector<TokenId>> history;  // by choice, generated so far; empty on the first attempt
  SamplingOptions sampling;
  uint32_t n = 1;
  std::vector<TokenId> stop_ids;  // end a choice; the stop token is sent before the finish
  uint32_t max_tokens = 0;        // per choice, history included; 0: only the prompt is computed
  uint32_t budget_ms = 0;         // left when sent; 0: none
  uint32_t priority = 0;
  std::string cache_salt;
  bool prompt_logprobs = false;  // report positions 1..prompt-1, as events of choice 0
  int32_t top_logprobs = -1;     // -1: no logprobs
  uint32_t min_tokens = 0;       // stop ids are masked before that many tokens
};

struct TopLogprob {
  TokenId token = 0;
  float logprob = 0;
};
struct TokenEvent {
  uint64_t request = 0;
  uint32_t choice = 0;
  Position position = 0;  // index in prompt + output; below the prompt length: a prompt logprob
  TokenId token = 0;
  float logprob = 0;
  std::vector<TopLogprob> top;  // best first
};
enum class FinishReason : uint8_t { kStop, kLength, kCancelled };
struct FinishEvent {
  uint64_t request = 0;
  uint32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
};
struct ErrorEvent {  // the request is over at this worker
  uint64_t request = 0;
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string text;
  uint32_t retry_after_ms = 0;
};
struct AcceptedEvent {
  uint64_t request = 0;
  uint32_t cached_tokens = 0;
};
struct WorkerLoad {
  uint32_t running = 0, waiting = 0, kv_blocks_used = 0, kv_blocks_total = 0;
};
// What came in one message. Handled in this order: accepted, tokens, finishes, errors.
struct AttentionStep {
  std::vector<AcceptedEvent> accepted;
  std::vector<TokenEvent> tokens;
  std::vector<FinishEvent> finishes;
  std::vector<ErrorEvent> errors;
  std::optional<WorkerLoad> load;
};
struct WorkerInfo {
  std::string worker;    // name
  std::string model;     // id
  std::string manifest;  // 32 bytes
  std::string class_name;
  uint64_t fingerprint = 0;
  uint32_t context_tokens = 0;  // longest prompt + output
  uint32_t vocab = 0;
};

// Called by the client one at a time, never from within Start, Submit or Cancel, and never after the client's
// destructor. OnWelcome opens a session, OnDown ends it: all its requests are lost. Then the client dials
// again by itself.
class AttentionSink {
 public:
  virtual ~AttentionSink() = default;
  virtual void OnWelcome(const WorkerInfo& info) = 0;
  virtual void OnStep(AttentionStep step) = 0;
  virtual void OnDown(const absl::Status& why) = 0;
};

// Thread-safe; never blocks.
class AttentionClient {
 public:
  virtual ~AttentionClient() = default;  // ends the session; waits for a callback under way
  virtual void Start(AttentionSink* sink) = 0;
  // UNAVAILABLE: no session is open. After OK the request ends with finishes of all choices, an error, or
  // OnDown.
  virtual absl::Status Submit(const AttentionRequest& request) = 0;
  virtual void Cancel(uint64_t request, std::optional<uint32_t> choice) = 0;  // nullopt: all choices
};

}  // namespace consilium::gateway
