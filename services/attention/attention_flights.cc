// Flights: what computes next, and the walk of a micro-batch through the layers.
#include <algorithm>
#include <limits>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "services/attention/attention_impl.h"

namespace consilium {
namespace {

// Waiting sequences beyond this many cannot be reached by one plan.
constexpr uint32_t kViewWaitingMax = 512;

}  // namespace

void AttentionCore::Impl::Plan() {
  plan_wanted_ = false;
  // A plan that only preempted learns from the next snapshot what that freed. Bounded by the sequences
  // holding pages.
  while (PlanOnce()) {
  }
}

void AttentionCore::Impl::BuildView() {
  view_.sequences.clear();
  view_sequences_.clear();
  view_.available_blocks = kv_.available_blocks();
  view_.has_states = has_states();
  view_.available_states = kv_.states().available();
  view_.decode_flights = view_.prompt_flights = 0;
  for (const Flight& f : flights_) {
    if (f.active) ++(f.decode_only ? view_.decode_flights : view_.prompt_flights);
  }
  view_.link_us = link_us_;
  view_.compute_us = service_us_;
  uint32_t waiting = 0;
  for (const auto& [order, s] : schedule_) {
    if (!s->kv.has_value() && ++waiting > kViewWaitingMax) continue;
    SchedulerSequence v;
    v.tokens = static_cast<uint32_t>(s->tokens.size());
    v.computed = s->computed;
    if (s->kv.has_value()) {
      v.blocks = static_cast<uint32_t>(kv_.blocks(*s->kv).size());
      v.sole_blocks = kv_.sole_blocks(*s->kv);
      v.sole_states = kv_.sole_states(*s->kv);
    }
    v.decode = s->computed + 1 == s->tokens.size() && s->tokens.size() > s->request->prompt_size();
    v.in_flight = s->flight >= 0;
    view_.sequences.push_back(v);
    view_sequences_.push_back(s);
  }
}

// True: look again (pages came free and nothing started).
bool AttentionCore::Impl::PlanOnce() {
  if (std::all_of(flights_.begin(), flights_.end(), [](const Flight& f) { return f.active; })) return false;
  BuildView();
  PlanStep(view_, limits_, &plan_);
  for (uint32_t v : plan_.preempt) Preempt(view_sequences_[v]);
  for (const PlannedFlight& planned : plan_.flights) BeginFlight(planned);
  return plan_.flights.empty() && !plan_.preempt.empty();
}

void AttentionCore::Impl::Preempt(Sequence* s) {
  ++stats_.preemptions;
  ReleaseKv(s);
}

void AttentionCore::Impl::BeginFlight(const PlannedFlight& planned) {
  uint32_t id = 0;
  while (flights_[id].active) CHECK(++id < flights_.size());
  Flight& f = flights_[id];
  f.active = true;
  f.decode_only = planned.decode_only;
  for (const PlannedSequence& p : planned.sequences) {
    Sequence* s = view_sequences_[p.index];
    Request* r = s->request;
    if (!s->kv.has_value()) {
      const bool score =
          r->submit.prompt_logprobs && s->choice == r->leader && r->scored + 1 < r->prompt_size();
      // At least the last token is computed, since its row gives the next one.
      const uint32_t match_max = score ? 0 : static_cast<uint32_t>(s->tokens.size()) - 1;
      uint32_t hit = 0;
      s->kv = kv_.Open(r->root, s->tokens, match_max, &hit);
      s->computed = hit;
      if (!r->accepted) {
        stats_.prefix_queries += r->prompt_size();
        stats_.prefix_hits += std::min(hit, r->prompt_size());
        Accept(r, hit);
      }
    }
    const uint32_t rows = std::min(p.rows, static_cast<uint32_t>(s->tokens.size()) - s->computed);
    AddRows(&f, s, std::min(rows, RowsToState(*r, s->computed)));
    s->flight = static_cast<int>(id);
    ++r->in_flight;
  }
  // Page lists are final only now: spans into them stay valid until the flight is back.
  for (const attention::FlightEntry& e : f.entries) {
    const KvStore::Seq kv = *e.sequence->kv;
    f.batch.sequences.push_back(
        {kv_.blocks(kv), e.sequence->request->long_context, kv_.state(kv), kv_.claimed_state(kv)});
  }
  ++stats_.flights;
  stats_.rows += f.batch.rows.size();
  Observe(attention_action::Metric::kFlightRows, static_cast<double>(f.batch.rows.size()));
  RunStage(id, StageKind::kStart);
}

bool AttentionCore::Impl::KeepsState(const Request& request, uint32_t computed) const {
  return computed == request.fork_point() || computed % config_.state_snapshot_tokens == 0;
}

uint32_t AttentionCore::Impl::RowsToState(const Request& request, uint32_t computed) const {
  if (!has_states()) return std::numeric_limits<uint32_t>::max();
  const uint32_t step = config_.state_snapshot_tokens, fork = request.fork_point();
  uint32_t next = (computed / step + 1) * step;
  if (fork > computed) next = std::min(next, fork);
  return next - computed;
}

void AttentionCore::Impl::AddRows(Flight* f, Sequence* s, uint32_t rows) {
  Request* r = s->request;
  const SessionSubmit& submit = r->submit;
  const uint32_t prompt = r->prompt_size(), size = static_cast<uint32_t>(s->tokens.size());
  CHECK_MSG(kv_.Reserve(*s->kv, s->computed + rows, &f->batch.fresh_blocks), "the plan promised KV pages");
  CHECK_MSG(!has_states() || kv_.ClaimState(*s->kv), "the plan promised a state");
  const uint32_t index = static_cast<uint32_t>(f->entries.size());
  f->entries.push_back({s, static_cast<uint32_t>(f->batch.rows.size()), rows});
  const bool decode = rows == 1 && s->computed + 1 == size && size > prompt;
  const std::span<const TokenId> all(s->tokens);
  for (uint32_t i = 0; i < rows; ++i) {
    const Position at = s->computed + i;
    const uint32_t row = static_cast<uint32_t>(f->batch.rows.size());
    f->batch.rows.push_back({s->tokens[at], at, index, decode ? RowKind::kDecode : RowKind::kPrompt});
    f->request_tag.push_back(static_cast<uint32_t>(r->serial));
    f->priority.push_back(decode ? 0 : 1);
    SampleRow sample;
    sample.row = row;
    sample.sampling = &submit.sampling;
    sample.prompt = all.first(prompt);
    sample.generated = all.subspan(prompt);
    sample.top_logprobs = submit.top_logprobs;
    if (submit.prompt_logprobs && s->choice == r->leader && at + 1 < prompt && at + 1 > r->scored) {
      sample.score_only = true;
      sample.target = s->tokens[at + 1];
    } else if (at + 1 == size && submit.max_tokens > 0) {
      if (size - prompt < submit.min_tokens) sample.banned = submit.stop_ids;
    } else {
      continue;
    }
    sample.key = {submit.sampling.seed, s->choice, at + 1};
    f->batch.samples.push_back(sample);
    f->samples.push_back({s, at + 1, sample.score_only});
  }
  if (!decode) stats_.prompt_tokens += rows;
}

void AttentionCore::Impl::RunStage(uint32_t id, StageKind kind) {
  Flight& f = flights_[id];
  (kind == StageKind::kShared ? f.shared_running : f.stage_running) = true;
  StageJob job;
  job.flight = FlightId(id);
  job.kind = kind;
  job.batch = &f.batch;
  if (kind == StageKind::kCombine) job.slot_outputs = f.slots.slots();
  out_->emplace_back(attention_action::RunStage{job});
}

void AttentionCore::Impl::On(attention_event::StageDone& e) {
  StageOut& out = e.out;
  const uint32_t id = out.flight.value;
  CHECK(id < flights_.size() && flights_[id].active);
  Flight& f = flights_[id];
  Observe(attention_action::Metric::kStageSeconds, static_cast<double>(out.compute_us) * 1e-6);
  const bool shared = out.kind == StageKind::kShared;
  CHECK(shared ? f.shared_running : f.stage_running);
  (shared ? f.shared_running : f.stage_running) = false;
  if (!out.status.ok()) {
    const absl::Status why = Internal("attention stage failed: " + ToString(out.status));
    f.doomed = true;
    for (size_t i = 0; i < f.entries.size(); ++i) {
      Request* r = f.entries[i].sequence->request;
      if (!r->ended) FailRequest(r, why, 0, true);
    }
  }
  if (!f.active) return;  // abandoned with its last request
  if (out.status.ok() && out.finished) {
    FinishFlight(id, &out);  // also a doomed one: it is done
  } else if (f.doomed) {
    Abandon(id);
  } else if (shared) {
    f.shared_done = true;
    MaybeCombine(id);
  } else {
    StartRouting(id, out);
  }
}

void AttentionCore::Impl::StartRouting(uint32_t id, const StageOut& out) {
  Flight& f = flights_[id];
  const size_t slots = f.batch.rows.size() * config_.shape.top_k;
  CHECK(out.experts.size() == slots && out.layer.value < config_.shape.layers);
  f.routed = true;
  f.layer = out.layer;
  f.experts.assign(out.experts.begin(), out.experts.end());
  f.wire_rows = out.wire_rows;
  f.slots.Reset(slots, config_.shape.row_bytes_out);
  f.unassigned.clear();
  f.failed.clear();
  f.attempts = 0;
  for (uint32_t s = 0; s < slots; ++s) {
    CHECK(f.experts[s] < config_.shape.experts);
    ++stats_.expert_rows[size_t{f.layer.value} * config_.shape.experts + f.experts[s]];
    f.unassigned.push_back(s);
  }
  f.shared_done = !config_.shape.shared_experts;
  Assign(id);
  if (!f.shared_done) RunStage(id, StageKind::kShared);
}

void AttentionCore::Impl::MaybeCombine(uint32_t id) {
  Flight& f = flights_[id];
  if (!f.active || f.doomed || !f.routed || !f.slots.full() || !f.shared_done) return;
  CHECK(f.unassigned.empty());
  CancelCalls(&f);  // nothing is left to wait for
  f.routed = false;
  RunStage(id, StageKind::kCombine);
}

void AttentionCore::Impl::FinishFlight(uint32_t id, StageOut* out) {
  Flight& f = flights_[id];
  CHECK(out->samples.size() == f.samples.size());
  entries_back_.swap(f.entries);
  samples_back_.swap(f.samples);
  const auto& entries = entries_back_;
  const auto& samples = samples_back_;
  CloseFlight(id);
  for (const attention::FlightEntry& e : entries) {
    Sequence* s = e.sequence;
    s->flight = -1;
    --s->request->in_flight;
    s->computed += e.rows;
    kv_.Commit(*s->kv, std::span<const TokenId>(s->tokens).first(s->computed),
               has_states() && KeepsState(*s->request, s->computed));
    if (s->done) ReleaseKv(s);
  }
  for (const attention::FlightEntry& e : entries) {
    Request* r = e.sequence->request;
    const bool leads = !e.sequence->done && e.sequence->choice == r->leader;
    if (leads && !r->prompt_done && e.sequence->computed >= r->prompt_size()) ForkChoices(r);
  }
  for (size_t i = 0; i < samples.size(); ++i) {
    Sequence* s = samples[i].sequence;
    if (s->done) continue;
    SampleResult& result = out->samples[i];
    if (samples[i].score_only) {
      Emit(s->request->session, {s->request->submit.request, s->choice, samples[i].position, result.token,
                                 result.logprob, std::move(result.top)});
      s->request->scored = samples[i].position;
    } else {
      AddToken(s, std::move(result));
    }
  }
  for (const attention::FlightEntry& e : entries) {
    Request* r = e.sequence->request;
    if (r->submit.max_tokens > 0 || !r->prompt_done) continue;
    for (Sequence& s : r->choices) {
      if (!s.done) FinishChoice(&s, FinishReason::kLength);  // only the prompt was wanted
    }
  }
}

void AttentionCore::Impl::CloseFlight(uint32_t id) {
  Flight& f = flights_[id];
  CHECK(!f.stage_running && !f.shared_running && f.calls.empty());
  f.active = f.decode_only = f.doomed = f.shared_done = f.routed = false;
  f.batch.rows.clear();
  f.batch.sequences.clear();
  f.batch.samples.clear();
  f.batch.fresh_blocks.clear();
  f.entries.clear();
  f.samples.clear();
  f.request_tag.clear();
  f.priority.clear();
  f.experts.clear();
  f.wire_rows = BufferRef();
  f.slots.Clear();
  f.unassigned.clear();
  f.failed.clear();
  f.attempts = 0;
  f.retry_at = kNever;
  plan_wanted_ = true;
}

void AttentionCore::Impl::Abandon(uint32_t id) {
  Flight& f = flights_[id];
  CancelCalls(&f);
  f.doomed = true;
  f.unassigned.clear();
  if (f.stage_running || f.shared_running) return;  // when it is done
  const std::vector<attention::FlightEntry> entries = std::move(f.entries);
  out_->emplace_back(attention_action::AbandonFlight{FlightId(id)});
  CloseFlight(id);
  for (const attention::FlightEntry& e : entries) {
    Sequence* s = e.sequence;
    s->flight = -1;
    --s->request->in_flight;
    if (s->done)
      ReleaseKv(s);
    else
      // Half-written pages go back, so that they are zeroed again; so does what is written of a state.
      kv_.Truncate(*s->kv, s->computed);
  }
}

void AttentionCore::Impl::AbandonIfDead(uint32_t id) {
  Flight& f = flights_[id];
  if (!f.active || f.doomed) return;
  for (const attention::FlightEntry& e : f.entries) {
    if (!e.sequence->done) return;
  }
  Abandon(id);
}

}  // namespace consilium
