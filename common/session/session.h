// What a gateway and an attention worker say to each other (attention.proto), as plain data: cores and tests
// use these, shells convert them (session_proto.h).
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"

namespace consilium {

struct Sampling {
  uint64_t seed = 0;
  double temperature = 1;  // 0: greedy, the largest processed logit
  double top_p = 1;        // smallest prefix of the candidates whose mass reaches it; 1: off
  uint32_t top_k = 0;      // 0: off
  double min_p = 0;        // candidates at least this share of the most likely one; 0: off
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double repetition_penalty = 1;
  std::vector<std::pair<TokenId, float>> logit_bias;
};

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;  // natural logarithm, of the raw logits
  bool operator==(const TokenLogprob&) const = default;
};

// First message of a worker.
struct WorkerWelcome {
  std::string worker;
  std::string model_id;
  std::string manifest;    // 32 bytes
  std::string class_name;  // "f32"
  uint64_t fingerprint = 0;
  uint32_t context_tokens = 0;  // longest prompt + output
  uint32_t vocab = 0;
};

struct SessionSubmit {
  uint64_t request = 0;    // unique in the gateway's process; the same in every attempt
  std::string request_id;  // x-request-id, for logs
  uint32_t attempt = 0;
  std::string tenant;
  std::string manifest;  // as the worker's welcome said
  std::vector<TokenId> prompt;
  std::vector<std::pair<uint32_t, std::vector<TokenId>>>
      history;        // (choice, tokens generated so far), for resume
  Sampling sampling;  // seed always set
  uint32_t n = 1;
  std::vector<TokenId> stop_ids;  // end a choice; the stop token is sent before the finish
  uint32_t max_tokens = 0;        // per choice, history included; 0: only the prompt is computed
  uint32_t min_tokens = 0;        // stop ids are masked before that many tokens
  uint32_t budget_ms = 0;         // left when sent; 0: none
  uint32_t priority = 0;
  std::string cache_salt;
  bool prompt_logprobs = false;  // report positions 1..prompt-1, as tokens of choice 0
  int32_t top_logprobs = -1;     // -1: no logprobs
};

struct SessionToken {
  uint64_t request = 0;
  uint32_t choice = 0;
  Position position = 0;  // index in prompt + output; below the prompt's length: a prompt logprob
  TokenId token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // best first
};
enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled };
struct SessionFinish {
  uint64_t request = 0;
  uint32_t choice = 0;
  FinishReason reason = FinishReason::kNone;
};
// The request is over at this worker, all choices.
struct SessionError {
  uint64_t request = 0;
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string text;
  uint32_t retry_after_ms = 0;
};
struct SessionAccepted {
  uint64_t request = 0;
  uint32_t cached_tokens = 0;  // prompt tokens found in the prefix cache
};
struct WorkerLoad {
  uint32_t running = 0, waiting = 0, kv_blocks_used = 0, kv_blocks_total = 0;
};
// One step of a worker, or several that were not yet read. Handled in this order: accepted, tokens, finishes,
// errors.
struct SessionEvents {
  std::vector<SessionAccepted> accepted;
  std::vector<SessionToken> tokens;
  std::vector<SessionFinish> finishes;
  std::vector<SessionError> errors;
  WorkerLoad load;
  bool empty() const { return accepted.empty() && tokens.empty() && finishes.empty() && errors.empty(); }
};

}  // namespace consilium
