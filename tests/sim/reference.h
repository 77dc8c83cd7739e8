// What a request must give: an undisturbed run, alone, with every expert at hand and no network.
#pragma once
#include <map>
#include <vector>

#include "common/session/session.h"
#include "tests/sim/sim_model.h"

namespace consilium::sim {

// Logprobs as bits: equal means equal.
struct TokenBits {
  TokenId token = 0;
  uint32_t logprob = 0;
  std::vector<std::pair<TokenId, uint32_t>> top;
  bool operator==(const TokenBits&) const = default;
};
TokenBits BitsOf(const SessionToken& token);

struct Answer {
  std::map<uint32_t, std::vector<TokenBits>> tokens;  // choice -> generated
  std::map<uint32_t, FinishReason> finishes;
  std::map<Position, TokenBits> prompt;  // prompt logprobs
  uint32_t error_code = 0;
};

Answer RunAlone(SimModel* model, const SessionSubmit& submit);

}  // namespace consilium::sim
