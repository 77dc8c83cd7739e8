#include "services/gateway/token_stream.h"

#include <bit>

#include "common/base/hash.h"

namespace consilium::gateway {

TokenStream::Seen TokenStream::Of(const SessionToken& event) {
  uint64_t hash = event.top.size();
  for (const TokenLogprob& top : event.top)
    hash = Mix(Mix(hash, top.id), std::bit_cast<uint32_t>(top.logprob));
  return {event.token, std::bit_cast<uint32_t>(event.logprob), hash};
}

Push TokenStream::Add(const SessionToken& event) {
  const bool in_prompt = event.position < prompt_tokens_;
  if (event.choice >= choices_.size() || event.position == 0) return Push::kGap;
  std::vector<Seen>& seen = in_prompt ? prompt_ : choices_[event.choice];
  const size_t at = event.position - (in_prompt ? 1 : prompt_tokens_);
  if (at > seen.size()) return Push::kGap;
  if (at < seen.size()) return seen[at] == Of(event) ? Push::kDuplicate : Push::kMismatch;
  seen.push_back(Of(event));
  return Push::kNew;
}

std::vector<std::pair<uint32_t, std::vector<TokenId>>> TokenStream::ResumeHistory() const {
  std::vector<std::pair<uint32_t, std::vector<TokenId>>> out;
  for (uint32_t c = 0; c < choices_.size(); ++c) {
    out.push_back({c, {}});
    for (size_t i = 0; i + 1 < choices_[c].size(); ++i) out.back().second.push_back(choices_[c][i].token);
  }
  return out;
}

}  // namespace consilium::gateway
