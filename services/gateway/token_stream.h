// The tokens of one submission, idempotent by (choice, position): a duplicate is dropped and compared, so
// that every failover is an exactness check.
#pragma once
#include <cstdint>
#include <vector>

#include "services/gateway/attention_client.h"

namespace consilium::gateway {

enum class Push : uint8_t {
  kNew,
  kDuplicate,
  kMismatch,  // other token or other bits at a position seen before: the promise is broken
  kGap,       // not the next position: the worker's bug
};

class TokenStream {
 public:
  TokenStream(uint32_t prompt_tokens, uint32_t choices) : prompt_tokens_(prompt_tokens), choices_(choices) {}
  Push Add(const SessionToken& event);
  size_t count(uint32_t choice) const { return choices_[choice].size(); }
  // What a resumed submission carries, by choice: all tokens but the last. The last is computed again and
  // compared.
  std::vector<std::pair<uint32_t, std::vector<TokenId>>> ResumeHistory() const;

 private:
  struct Seen {
    TokenId token;
    uint32_t logprob_bits;
    uint64_t top_hash;
    bool operator==(const Seen&) const = default;
  };
  static Seen Of(const SessionToken& event);

  uint32_t prompt_tokens_;
  std::vector<std::vector<Seen>> choices_;
  std::vector<Seen> prompt_;  // logprobs of positions 1..prompt-1
};

}  // namespace consilium::gateway
