#include "services/gateway/generation.h"

#include <algorithm>
#include <numeric>

#include "common/base/hash.h"
#include "common/base/limits.h"

namespace consilium::gateway {

Generation::Generation(ApiRequest request, std::shared_ptr<const Tokenizer> tokenizer, Identity identity,
                       uint64_t seed, uint32_t context_tokens)
    : request_(std::move(request)),
      tokenizer_(std::move(tokenizer)),
      identity_(std::move(identity)),
      seed_(seed),
      context_tokens_(context_tokens),
      sent_(request_.prompts.size() * request_.best_of) {
  for (size_t p = 0; p < request_.prompts.size(); ++p) {
    parts_.push_back({TokenStream(static_cast<uint32_t>(request_.prompts[p].ids.size()), request_.best_of),
                      {},
                      {},
                      1,
                      {}});
    for (uint32_t c = 0; c < request_.best_of; ++c) parts_.back().choices.emplace_back(request_, tokenizer_);
    if (WantsPromptLogprobs()) PrepareEcho(p);
  }
}

SessionSubmit Generation::MakeSubmit(size_t part, uint32_t attempt) const {
  const Prompt& prompt = request_.prompts[part];
  SessionSubmit out;
  out.attempt = attempt;
  out.tenant = "default";
  out.prompt = prompt.ids;
  if (attempt > 0) out.history = parts_[part].tokens.ResumeHistory();
  out.sampling = request_.sampling;
  out.sampling.seed = seed_;
  out.n = request_.best_of;
  out.stop_ids = request_.stop_ids;
  out.max_tokens = request_.MaxTokens(prompt, context_tokens_);
  out.prompt_logprobs = WantsPromptLogprobs();
  out.top_logprobs =
      request_.best_of > request_.n ? std::max(request_.top_logprobs, 0) : request_.top_logprobs;
  out.min_tokens = request_.min_tokens;
  return out;
}

std::vector<uint32_t> Generation::FinishedChoices(size_t part) const {
  std::vector<uint32_t> out;
  for (uint32_t c = 0; c < request_.best_of; ++c) {
    if (parts_[part].choices[c].finished()) out.push_back(c);
  }
  return out;
}

// Over the first KV block and as many more as a system prompt usually has; a shorter prompt is hashed whole.
uint64_t Generation::PrefixHash(size_t part) const {
  const std::vector<TokenId>& ids = request_.prompts[part].ids;
  const size_t n = std::min<size_t>(ids.size(), 4 * kKvBlockTokens);
  uint64_t hash = n;
  for (size_t i = 0; i < n; ++i) hash = Mix(hash, ids[i]);
  return hash;
}

void Generation::OnAccepted(size_t part, uint32_t cached_tokens) {
  if (!parts_[part].cached) parts_[part].cached = cached_tokens;  // a resumed prompt is no new hit
  any_output_ = true;
}

Push Generation::OnToken(size_t part, const SessionToken& event, bool* cancel) {
  *cancel = false;
  Part& p = parts_[part];
  const Push push = p.tokens.Add(event);
  if (push != Push::kNew) return push;
  any_output_ = true;
  const size_t prompt = request_.prompts[part].ids.size();
  if (event.position >= prompt) {
    *cancel = p.choices[event.choice].OnToken(event);
  } else if (event.position < p.echo.size()) {
    AnswerToken& token = p.echo[event.position];
    token.logprob = event.logprob;
    token.top = event.top;
    ++p.echo_have;
  }
  return push;
}

void Generation::OnFinish(size_t part, const SessionFinish& event) {
  if (event.choice >= parts_[part].choices.size()) return;
  any_output_ = true;
  parts_[part].choices[event.choice].OnFinish(event.reason);
}

bool Generation::part_done(size_t part) const {
  const auto& choices = parts_[part].choices;
  return std::all_of(choices.begin(), choices.end(), [](const Choice& c) { return c.finished(); });
}

bool Generation::done() const {
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (!part_done(p)) return false;
  }
  return true;
}

Usage Generation::usage() const {
  Usage out;
  for (size_t p = 0; p < parts_.size(); ++p) {
    out.prompt += request_.prompts[p].ids.size();
    out.cached += parts_[p].cached.value_or(0);
    for (const Choice& c : parts_[p].choices) out.completion += c.tokens();
  }
  return out;
}

std::vector<std::string_view> Generation::finish_reasons() const {
  std::vector<std::string_view> out;
  for (size_t p = 0; p < parts_.size(); ++p) {
    for (const uint32_t c : BestChoices(p)) out.push_back(parts_[p].choices[c].finish_reason());
  }
  return out;
}

// The n best of best_of, best first: mean logprob, then index.
std::vector<uint32_t> Generation::BestChoices(size_t part) const {
  std::vector<uint32_t> order(request_.best_of);
  std::iota(order.begin(), order.end(), 0u);
  const auto& choices = parts_[part].choices;
  if (request_.best_of > request_.n) {
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return choices[a].mean_logprob() > choices[b].mean_logprob();
    });
    order.resize(request_.n);
  }
  return order;
}

bool Generation::EchoReady(const Part& part) const { return part.echo_have >= part.echo.size(); }

std::string Generation::EchoText(size_t part) const {
  const Prompt& prompt = request_.prompts[part];
  if (prompt.text) return *prompt.text;
  TextStream stream(tokenizer_, false);
  std::string out;
  for (const TokenId id : prompt.ids) out += stream.Step(id);
  return out + stream.Flush();
}

// Gives each prompt token its place in the prompt's text.
void Generation::PrepareEcho(size_t part) {
  const Prompt& prompt = request_.prompts[part];
  std::vector<AnswerToken>& echo = parts_[part].echo;
  // Special tokens that the tokenizer added (BOS) are no part of a text prompt.
  for (const bool skip_special : {false, true}) {
    TextStream stream(tokenizer_, skip_special);
    echo.clear();
    size_t at = 0;
    for (const TokenId id : prompt.ids) {
      const size_t begin = at;
      const std::string text = stream.Step(id);
      at += text.size();
      echo.push_back({id, 0, !echo.empty(), {}, begin, at, Characters(text)});
    }
    if (!prompt.text || at == prompt.text->size()) return;
  }
}

}  // namespace consilium::gateway
