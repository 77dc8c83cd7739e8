// What gateway and attention worker say to each other (attention.proto), as plain data: the shells convert, the cores
// and tests use these.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "services/attention/sampler.h"

namespace consilium {

struct WorkerWelcome {
  std::string worker;
  std::string model_id;
  std::string manifest;     // 32 bytes
  std::string class_name;   // "f32"
  uint64_t fingerprint = 0;
  uint32_t context_tokens = 0;
  uint32_t vocab = 0;
};

struct SessionSubmit {
  uint64_t request = 0;
  std::string request_id;   // x-request-id, for logs
  uint32_t attempt = 0;
  std::string tenant;
  std::string manifest;
  std::vector<TokenId> prompt;
  std::vector<std::pair<uint32_t, std::vector<TokenId>>> history;  // (choice, tokens generated so far), for resume
  Sampling sampling;        // seed always set
  uint32_t n = 1;
  std::vector<TokenId> stop_ids;
  uint32_t max_tokens = 0;  // per choice; 0: prompt only
  uint32_t min_tokens = 0;
  uint32_t budget_ms = 0;   // 0: none
  uint32_t priority = 0;
  std::string cache_salt;
  bool prompt_logprobs = false;
  int32_t top_logprobs = -1;
};

struct SessionToken {
  uint64_t request = 0;
  uint32_t choice = 0;
  Position position = 0;    // index in prompt + output; below the prompt's length: a prompt logprob
  TokenId token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;
};
enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled };
struct SessionFinish {
  uint64_t request = 0;
  uint32_t choice = 0;
  FinishReason reason = FinishReason::kNone;
};
// Ends the whole request.
struct SessionError {
  uint64_t request = 0;
  uint32_t code = 0;        // absl::StatusCode
  std::string text;
  uint32_t retry_after_ms = 0;
};
struct SessionAccepted {
  uint64_t request = 0;
  uint32_t cached_tokens = 0;
};
struct WorkerLoad {
  uint32_t running = 0, waiting = 0, kv_blocks_used = 0, kv_blocks_total = 0;
};
struct SessionEvents {
  std::vector<SessionAccepted> accepted;
  std::vector<SessionToken> tokens;
  std::vector<SessionFinish> finishes;
  std::vector<SessionError> errors;
  WorkerLoad load;
  bool empty() const { return accepted.empty() && tokens.empty() && finishes.empty() && errors.empty(); }
};

}  // namespace consilium
