#include "common/session/session_proto.h"

#include <bit>

#include "consilium/attention/v1/attention.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::attention::v1;

FinishReason Reason(pb::Finish::Reason reason) {
  switch (reason) {
    case pb::Finish::STOP:
      return FinishReason::kStop;
    case pb::Finish::LENGTH:
      return FinishReason::kLength;
    case pb::Finish::CANCELLED:
      return FinishReason::kCancelled;
    default:
      return FinishReason::kNone;
  }
}

}  // namespace

void ToProto(const SessionSubmit& s, pb::Submit* out) {
  out->set_request(s.request);
  out->set_request_id(s.request_id);
  out->set_attempt(s.attempt);
  out->set_tenant(s.tenant);
  out->set_manifest(s.manifest);
  out->mutable_prompt()->Add(s.prompt.begin(), s.prompt.end());
  for (const auto& [choice, tokens] : s.history) {
    pb::ChoiceHistory* h = out->add_history();
    h->set_choice(choice);
    h->mutable_tokens()->Add(tokens.begin(), tokens.end());
  }
  pb::Sampling* p = out->mutable_sampling();
  p->set_seed(s.sampling.seed);
  p->set_temperature(s.sampling.temperature);
  p->set_top_p(s.sampling.top_p);
  p->set_top_k(s.sampling.top_k);
  p->set_min_p(s.sampling.min_p);
  p->set_presence_penalty(s.sampling.presence_penalty);
  p->set_frequency_penalty(s.sampling.frequency_penalty);
  p->set_repetition_penalty(s.sampling.repetition_penalty);
  for (const auto& [token, bias] : s.sampling.logit_bias) {
    pb::LogitBias* b = p->add_logit_bias();
    b->set_token(token);
    b->set_bias(bias);
  }
  out->set_n(s.n);
  out->mutable_stop_ids()->Add(s.stop_ids.begin(), s.stop_ids.end());
  out->set_max_tokens(s.max_tokens);
  out->set_min_tokens(s.min_tokens);
  out->set_budget_ms(s.budget_ms);
  out->set_priority(s.priority);
  out->set_cache_salt(s.cache_salt);
  out->set_prompt_logprobs(s.prompt_logprobs);
  out->set_top_logprobs(s.top_logprobs);
}

SessionSubmit FromProto(const pb::Submit& in) {
  SessionSubmit s;
  s.request = in.request();
  s.request_id = in.request_id();
  s.attempt = in.attempt();
  s.tenant = in.tenant();
  s.manifest = in.manifest();
  s.prompt.assign(in.prompt().begin(), in.prompt().end());
  for (const pb::ChoiceHistory& h : in.history()) {
    s.history.emplace_back(h.choice(), std::vector<TokenId>(h.tokens().begin(), h.tokens().end()));
  }
  const pb::Sampling& p = in.sampling();
  s.sampling.seed = p.seed();
  s.sampling.temperature = p.temperature();
  s.sampling.top_p = p.top_p();
  s.sampling.top_k = p.top_k();
  s.sampling.min_p = p.min_p();
  s.sampling.presence_penalty = p.presence_penalty();
  s.sampling.frequency_penalty = p.frequency_penalty();
  s.sampling.repetition_penalty = p.repetition_penalty();
  for (const pb::LogitBias& b : p.logit_bias()) s.sampling.logit_bias.emplace_back(b.token(), b.bias());
  s.n = in.n();
  s.stop_ids.assign(in.stop_ids().begin(), in.stop_ids().end());
  s.max_tokens = in.max_tokens();
  s.min_tokens = in.min_tokens();
  s.budget_ms = in.budget_ms();
  s.priority = in.priority();
  s.cache_salt = in.cache_salt();
  s.prompt_logprobs = in.prompt_logprobs();
  s.top_logprobs = in.top_logprobs();
  return s;
}

void ToProto(const WorkerWelcome& w, pb::Welcome* out) {
  out->set_worker(w.worker);
  out->mutable_model()->set_id(w.model_id);
  out->mutable_model()->set_manifest(w.manifest);
  out->mutable_numerics()->set_name(w.class_name);
  out->mutable_numerics()->set_fingerprint(w.fingerprint);
  out->set_context_tokens(w.context_tokens);
  out->set_vocab(w.vocab);
}

WorkerWelcome FromProto(const pb::Welcome& in) {
  return {in.worker(),
          in.model().id(),
          in.model().manifest(),
          in.numerics().name(),
          in.numerics().fingerprint(),
          in.context_tokens(),
          in.vocab()};
}

void AppendProto(const SessionEvents& events, pb::FromAttention* out) {
  for (const SessionAccepted& a : events.accepted) {
    pb::Accepted* x = out->add_accepted();
    x->set_request(a.request);
    x->set_cached_tokens(a.cached_tokens);
  }
  for (const SessionToken& t : events.tokens) {
    pb::TokenEvent* x = out->add_tokens();
    x->set_request(t.request);
    x->set_choice(t.choice);
    x->set_position(t.position);
    x->set_token(t.token);
    x->set_logprob_bits(std::bit_cast<uint32_t>(t.logprob));
    for (const TokenLogprob& p : t.top) {
      pb::TopLogprob* top = x->add_top();
      top->set_token(p.id);
      top->set_logprob_bits(std::bit_cast<uint32_t>(p.logprob));
    }
  }
  for (const SessionFinish& f : events.finishes) {
    pb::Finish* x = out->add_finishes();
    x->set_request(f.request);
    x->set_choice(f.choice);
    x->set_reason(static_cast<pb::Finish::Reason>(f.reason));
  }
  for (const SessionError& e : events.errors) {
    pb::RequestError* x = out->add_errors();
    x->set_request(e.request);
    x->set_code(static_cast<uint32_t>(e.code));
    x->set_text(e.text);
    x->set_retry_after_ms(e.retry_after_ms);
  }
  pb::Load* load = out->mutable_load();
  load->set_running(events.load.running);
  load->set_waiting(events.load.waiting);
  load->set_kv_blocks_used(events.load.kv_blocks_used);
  load->set_kv_blocks_total(events.load.kv_blocks_total);
}

SessionEvents FromProto(const pb::FromAttention& in) {
  SessionEvents out;
  for (const pb::Accepted& a : in.accepted()) out.accepted.push_back({a.request(), a.cached_tokens()});
  out.tokens.reserve(static_cast<size_t>(in.tokens_size()));
  for (const pb::TokenEvent& t : in.tokens()) {
    out.tokens.push_back(
        {t.request(), t.choice(), t.position(), t.token(), std::bit_cast<float>(t.logprob_bits()), {}});
    for (const pb::TopLogprob& p : t.top()) {
      out.tokens.back().top.push_back({p.token(), std::bit_cast<float>(p.logprob_bits())});
    }
  }
  for (const pb::Finish& f : in.finishes())
    out.finishes.push_back({f.request(), f.choice(), Reason(f.reason())});
  for (const pb::RequestError& e : in.errors()) {
    out.errors.push_back(
        {e.request(), static_cast<absl::StatusCode>(e.code()), e.text(), e.retry_after_ms()});
  }
  out.load = {in.load().running(), in.load().waiting(), in.load().kv_blocks_used(),
              in.load().kv_blocks_total()};
  return out;
}

}  // namespace consilium
