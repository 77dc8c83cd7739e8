// Requests and their choices: admission, tokens, ends.
#include <algorithm>

#include "common/base/hash.h"
#include "common/base/limits.h"
#include "common/base/status.h"
#include "services/attention/attention_impl.h"

namespace consilium {
namespace {

std::string Str(uint64_t v) { return std::to_string(v); }

absl::Status CheckTokens(std::string_view what, const std::vector<TokenId>& tokens, uint32_t vocab) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= vocab) {
      return InvalidArgument(std::string(what) + " token " + Str(i) + ": id " + Str(tokens[i]) +
                             ", expected less than the vocabulary of " + Str(vocab));
    }
  }
  return absl::OkStatus();
}

uint32_t Generated(const attention::Sequence& s) {
  return static_cast<uint32_t>(s.tokens.size()) - s.request->prompt_size();
}

}  // namespace

absl::Status AttentionCore::Impl::Validate(const SessionSubmit& s) const {
  const BackendShape& shape = config_.shape;
  if (s.manifest != config_.manifest) {
    auto hex = [](const std::string& m) {
      return Hex(std::span(reinterpret_cast<const uint8_t*>(m.data()), std::min<size_t>(m.size(), 8)));
    };
    return FailedPrecondition("model manifest: this worker has " + hex(config_.manifest) +
                              ", the request is pinned to " + hex(s.manifest));
  }
  if (s.prompt.empty()) return InvalidArgument("the prompt is empty: expected at least 1 token");
  const uint64_t shortest = s.prompt.size() + (s.max_tokens > 0 ? 1 : 0);
  if (shortest > shape.context) {
    return InvalidArgument("prompt of " + Str(s.prompt.size()) + " tokens: the context holds " +
                           Str(shape.context) + " tokens of prompt and output");
  }
  if (s.n < 1 || s.n > kChoicesMax)
    return InvalidArgument("n: expected 1 to " + Str(kChoicesMax) + ", got " + Str(s.n));
  if (s.top_logprobs < -1 || s.top_logprobs > static_cast<int32_t>(kTopLogprobsMax)) {
    return InvalidArgument("top_logprobs: expected -1 to " + Str(kTopLogprobsMax) + ", got " +
                           std::to_string(s.top_logprobs));
  }
  RETURN_IF_ERROR(CheckTokens("prompt", s.prompt, shape.vocab));
  for (const auto& [choice, tokens] : s.history) {
    if (choice >= s.n)
      return InvalidArgument("history of choice " + Str(choice) + ": expected less than n = " + Str(s.n));
    RETURN_IF_ERROR(CheckTokens("history", tokens, shape.vocab));
  }
  for (const auto& [token, bias] : s.sampling.logit_bias) {
    if (token >= shape.vocab) {
      return InvalidArgument("logit_bias: token id " + Str(token) + ", expected less than " +
                             Str(shape.vocab));
    }
  }
  // The last token needs no KV of its own.
  const uint64_t longest =
      std::min<uint64_t>(shape.context, s.prompt.size() + std::max(s.max_tokens, 1u) - 1);
  const uint64_t pages = (longest + kKvBlockTokens - 1) / kKvBlockTokens;
  if (pages > shape.kv_blocks) {
    return InvalidArgument("prompt and max_tokens need " + Str(pages) + " KV blocks of " +
                           Str(kKvBlockTokens) + " tokens, the worker has " + Str(shape.kv_blocks));
  }
  return absl::OkStatus();
}

void AttentionCore::Impl::Refuse(SessionId session, uint64_t request, const absl::Status& why,
                                 uint32_t retry_after_ms) {
  ++stats_.requests_refused;
  Pending(session).errors.push_back({request, why.code(), Message(why), retry_after_ms});
}

void AttentionCore::Impl::On(attention_event::Submit& e) {
  ++stats_.requests;
  const uint64_t id = e.submit.request;
  if (auto it = by_key_.find({e.session, id}); it != by_key_.end()) {
    // A newer attempt of the same request takes its place.
    FailRequest(it->second, absl::CancelledError("resubmitted"), 0, false);
  }
  if (absl::Status s = Validate(e.submit); !s.ok()) return Refuse(e.session, id, s, 0);
  if (draining_) return Refuse(e.session, id, Unavailable("the worker is draining"), config_.retry_after_ms);
  if (waiting_ >= config_.waiting_requests_max) {
    return Refuse(e.session, id,
                  ResourceExhausted(Str(waiting_) + " requests are waiting, the limit is " +
                                    Str(config_.waiting_requests_max)),
                  config_.retry_after_ms);
  }
  StartRequest(e.session, std::move(e.submit));
}

void AttentionCore::Impl::StartRequest(SessionId session, SessionSubmit submit) {
  auto owned = std::make_unique<Request>();
  Request* r = owned.get();
  r->serial = next_serial_++;
  r->session = session;
  r->submit = std::move(submit);
  r->root =
      config_.manifest + config_.class_name + "/" + Str(config_.fingerprint) + "/" + r->submit.cache_salt;
  // Positions it may compute decide, not those it has: its pages must not change their tables on the way.
  const uint32_t from = config_.shape.long_context_from;
  r->long_context = from != 0 && std::min<uint64_t>(
                                     config_.shape.context,
                                     r->submit.prompt.size() + std::max(r->submit.max_tokens, 1u) - 1) > from;
  if (r->long_context) r->root += "/long";
  r->arrived = now_;
  const uint64_t budget_ms = r->submit.budget_ms > 0 ? r->submit.budget_ms : config_.request_timeout_ms;
  r->deadline = now_ + static_cast<MonoTime>(budget_ms) * 1000;
  r->open = r->submit.n;
  r->choices.resize(r->submit.n);
  for (uint32_t c = 0; c < r->submit.n; ++c) {
    r->choices[c].request = r;
    r->choices[c].choice = c;
    r->choices[c].tokens = r->submit.prompt;
  }
  for (const auto& [choice, tokens] : r->submit.history) {
    auto& all = r->choices[choice].tokens;
    all.resize(r->submit.prompt.size());
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  requests_.emplace(r->serial, std::move(owned));
  by_key_.emplace(std::pair(session, r->submit.request), r);
  deadlines_.emplace(r->deadline, r->serial);
  ++waiting_;
  for (Sequence& s : r->choices) {
    if (Generated(s) == 0) continue;
    const FinishReason reason = FinishedBy(s);  // a resumed choice may have been at its end
    if (reason != FinishReason::kNone) {
      if (!r->accepted) Accept(r, 0);
      FinishChoice(&s, reason);
      if (r->ended) return;
    }
  }
  PromoteLeader(r);
}

// The first choice that is still wanted computes the prompt; the others fork from it.
void AttentionCore::Impl::PromoteLeader(Request* request) {
  for (Sequence& s : request->choices) {
    if (s.done) continue;
    request->leader = s.choice;
    Schedule(&s);
    return;
  }
}

void AttentionCore::Impl::Schedule(Sequence* sequence) {
  if (sequence->scheduled) return;
  sequence->scheduled = true;
  schedule_.emplace(std::pair(sequence->request->serial, sequence->choice), sequence);
  plan_wanted_ = true;
}

void AttentionCore::Impl::Unschedule(Sequence* sequence) {
  if (!sequence->scheduled) return;
  sequence->scheduled = false;
  schedule_.erase({sequence->request->serial, sequence->choice});
}

void AttentionCore::Impl::Accept(Request* request, uint32_t cached_tokens) {
  request->accepted = true;
  --waiting_;
  Observe(attention_action::Metric::kQueueWaitSeconds, static_cast<double>(now_ - request->arrived) * 1e-6);
  Pending(request->session)
      .accepted.push_back({request->submit.request, std::min(cached_tokens, request->prompt_size())});
}

// The prompt is computed: the other choices share its full pages. The page that the last prompt token lies in
// is always computed anew by each choice, since the row that gives its first token writes there. Where the
// state behind those pages had to go, a choice begins from what the cache has.
void AttentionCore::Impl::ForkChoices(Request* request) {
  request->prompt_done = true;
  if (request->submit.max_tokens == 0) return;
  const Sequence& leader = request->choices[request->leader];
  const uint32_t shared = request->fork_point();
  for (Sequence& s : request->choices) {
    if (s.done || s.choice == request->leader) continue;
    s.kv = kv_.Fork(*leader.kv, shared);
    s.computed = s.kv.has_value() ? shared : 0;
    Schedule(&s);
  }
}

FinishReason AttentionCore::Impl::FinishedBy(const Sequence& s) const {
  const SessionSubmit& submit = s.request->submit;
  const uint32_t generated = Generated(s);
  if (generated == 0) return FinishReason::kNone;
  const auto& stops = submit.stop_ids;
  if (generated > submit.min_tokens &&
      std::find(stops.begin(), stops.end(), s.tokens.back()) != stops.end()) {
    return FinishReason::kStop;
  }
  if (generated >= submit.max_tokens || s.tokens.size() >= config_.shape.context)
    return FinishReason::kLength;
  return FinishReason::kNone;
}

// The list of tokens leaves with its session's events: it is made once, as long as the longest before.
void AttentionCore::Impl::Emit(SessionId session, SessionToken token) {
  auto& tokens = Pending(session).tokens;
  if (tokens.empty()) tokens.reserve(tokens_per_emit_);
  tokens.push_back(std::move(token));
  tokens_per_emit_ = std::max(tokens_per_emit_, tokens.size());
}

void AttentionCore::Impl::AddToken(Sequence* s, SampleResult result) {
  SessionToken token;
  token.request = s->request->submit.request;
  token.choice = s->choice;
  token.position = static_cast<Position>(s->tokens.size());
  token.token = result.token;
  token.logprob = result.logprob;
  token.top = std::move(result.top);
  s->tokens.push_back(result.token);
  ++stats_.generated_tokens;
  Emit(s->request->session, std::move(token));
  const FinishReason reason = FinishedBy(*s);
  if (reason != FinishReason::kNone) FinishChoice(s, reason);
}

void AttentionCore::Impl::ReleaseKv(Sequence* s) {
  if (!s->kv.has_value()) return;
  kv_.Release(*s->kv);
  s->kv.reset();
  s->computed = 0;
  plan_wanted_ = true;
}

// Nothing more is wanted of a choice. Its pages are free at once, or when its flight is back.
void AttentionCore::Impl::StopChoice(Sequence* s) {
  s->done = true;
  --s->request->open;
  Unschedule(s);
  if (s->flight < 0) ReleaseKv(s);
  plan_wanted_ = true;
}

void AttentionCore::Impl::FinishChoice(Sequence* s, FinishReason reason) {
  Request* r = s->request;
  const int flight = s->flight;
  StopChoice(s);
  Pending(r->session).finishes.push_back({r->submit.request, s->choice, reason});
  if (r->open == 0) {
    const bool cancelled = reason == FinishReason::kCancelled;
    ++(cancelled ? stats_.requests_cancelled : stats_.requests_finished);
    LogLine(attention_action::Severity::kDebug, r->submit.request_id,
            cancelled ? "request cancelled" : "request finished");
    EndRequest(r);
  } else if (!r->prompt_done && s->choice == r->leader) {
    PromoteLeader(r);
  }
  if (flight >= 0) AbandonIfDead(static_cast<uint32_t>(flight));
}

void AttentionCore::Impl::FailRequest(Request* r, const absl::Status& why, uint32_t retry_after_ms,
                                      bool emit) {
  std::vector<uint32_t> touched;
  for (Sequence& s : r->choices) {
    if (s.done) continue;
    if (s.flight >= 0) touched.push_back(static_cast<uint32_t>(s.flight));
    StopChoice(&s);
  }
  if (emit) {
    ++stats_.requests_failed;
    Pending(r->session).errors.push_back({r->submit.request, why.code(), Message(why), retry_after_ms});
    LogLine(attention_action::Severity::kWarn, r->submit.request_id, "request failed: " + ToString(why));
  } else {
    ++stats_.requests_cancelled;
  }
  EndRequest(r);
  for (uint32_t f : touched) AbandonIfDead(f);
}

void AttentionCore::Impl::EndRequest(Request* r) {
  CHECK(!r->ended);
  r->ended = true;
  if (!r->accepted) --waiting_;
  by_key_.erase({r->session, r->submit.request});
  deadlines_.erase({r->deadline, r->serial});
  ended_.push_back(r->serial);
  Observe(attention_action::Metric::kRequestSeconds, static_cast<double>(now_ - r->arrived) * 1e-6);
}

void AttentionCore::Impl::ExpireDeadlines() {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_) {
    Request* r = requests_.at(deadlines_.begin()->second).get();
    const Flight* stuck = nullptr;
    uint32_t generated = 0;
    for (const Sequence& s : r->choices) {
      generated += Generated(s);
      if (s.flight >= 0 && WaitsForExperts(flights_[static_cast<uint32_t>(s.flight)])) {
        stuck = &flights_[static_cast<uint32_t>(s.flight)];
      }
    }
    const std::string after = " within " + Str(static_cast<uint64_t>(now_ - r->arrived) / 1000) +
                              " ms, after " + Str(generated) + " tokens";
    if (!r->accepted) {
      FailRequest(r, Unavailable("the request was not admitted" + after), config_.retry_after_ms, true);
    } else if (stuck != nullptr && !stuck->unassigned.empty()) {
      const uint32_t slot = stuck->unassigned.front();
      FailRequest(r,
                  Unavailable("no shard answered for expert " + Str(stuck->experts[slot]) + " of layer " +
                              Str(stuck->layer.value) + after),
                  config_.retry_after_ms, true);
    } else if (stuck != nullptr) {
      FailRequest(r, Unavailable("the expert shards did not answer" + after), config_.retry_after_ms, true);
    } else {
      FailRequest(r, DeadlineExceeded("the request did not end" + after), 0, true);
    }
  }
}

// Ended requests whose choices are all back from flight.
void AttentionCore::Impl::FreeEnded() {
  std::erase_if(ended_, [this](uint64_t serial) {
    auto it = requests_.find(serial);
    if (it->second->in_flight > 0) return false;
    requests_.erase(it);
    return true;
  });
}

}  // namespace consilium
