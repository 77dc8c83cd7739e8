// Chooses a token from a row of logits: a pure function of (logits, options, token history, seed, choice,
// position). No state, no machine-dependent order: sums run in index or candidate order in double, candidates
// are ordered by logit descending, then id ascending.
#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "common/session/session.h"

namespace consilium {

struct SampleKey {
  uint64_t seed = 0;
  uint32_t choice = 0;    // index among the n choices of a request
  uint32_t position = 0;  // of the token to be chosen
};

struct SampleResult {
  TokenId token = 0;
  float logprob = 0;              // of `token` under the raw logits; 0 if no log-probabilities were asked for
  std::vector<TokenLogprob> top;  // the most likely tokens under the raw logits, best first
};

// Buffers kept between calls; grown to the vocabulary once.
struct SampleScratch {
  std::vector<float> logits;      // processed
  std::vector<double> weights;    // exp((logit - max) / temperature), by id
  std::vector<TokenId> ids;       // what top_k left, by id
  std::vector<uint64_t> keys;     // (logit, id) as one ordered number, by id
  std::vector<uint64_t> order;    // the best keys, sorted
  std::vector<uint32_t> buckets;  // keys by their leading bits
  std::vector<uint32_t> counts;   // of generated tokens by id; all zero between calls
};

// Steps, in this order: log-probabilities of the raw logits; repetition penalty (prompt and generated),
// frequency and presence penalties (generated only), logit_bias, `banned` to -inf; temperature; top_k; top_p;
// min_p; then the inverse of the cumulative distribution at u = PhiloxUniform(key). NaN counts as -inf. Ids
// beyond the vocabulary are ignored. `top_logprobs`: how many to return, 0 for the chosen token's own only,
// -1 for none at all.
SampleResult Sample(std::span<const float> logits, const Sampling& sampling, std::span<const TokenId> prompt,
                    std::span<const TokenId> generated, std::span<const TokenId> banned, int top_logprobs,
                    SampleKey key, SampleScratch* scratch);

// Log-probabilities for a token that is given, not chosen (prompt logprobs).
SampleResult ScoreToken(std::span<const float> logits, TokenId token, int top_logprobs);

}  // namespace consilium
