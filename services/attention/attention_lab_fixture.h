// A worker's core with the hash backend and expert shards that answer as a test says.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/testing/hash_backend.h"
#include "services/attention/attention_core.h"

namespace consilium {

using Tokens = std::vector<TokenId>;

struct Outcome {
  uint32_t accepted = 0, cached = 0, errors = 0, error_code = 0;
  std::string error_text;
  std::map<uint32_t, Tokens> tokens;  // choice -> generated
  std::map<uint32_t, FinishReason> finishes;
  std::map<Position, float> prompt_logprobs;
  bool ended(uint32_t n = 1) const { return errors > 0 || finishes.size() == n; }
  bool operator==(const Outcome&) const = default;
};

inline SessionSubmit Submit(uint64_t request, size_t prompt, uint32_t max_tokens) {
  SessionSubmit s;
  s.request = request;
  s.manifest = "m";
  for (size_t i = 0; i < prompt; ++i)
    s.prompt.push_back(static_cast<TokenId>((request * 131 + i * 17) % 1000));
  s.sampling.seed = request;
  s.max_tokens = max_tokens;
  return s;
}

// What a shard of the hash class answers.
inline CallResult HashAnswer(CallId call, const frame::View& view, BufferPool* pool) {
  CallResult result;
  result.call = call;
  // The range lies before the payload.
  const frame::Range range{0, static_cast<uint32_t>(view.slots.size())};
  result.buffer = pool->Allocate(8 + view.slots.size() * 8);
  std::memcpy(result.buffer.data(), &range, 8);
  result.ranges = {reinterpret_cast<const frame::Range*>(result.buffer.data()), 1};
  result.payload = result.buffer.data() + 8;
  result.payload_bytes = view.slots.size() * 8;
  for (size_t i = 0; i < view.slots.size(); ++i) {
    uint64_t x;
    std::memcpy(&x, view.payload.data() + view.slots[i].row * 8, 8);
    const uint64_t y = HashExpert(view.header.layer, ExpertId(view.slots[i].expert), x);
    std::memcpy(result.buffer.data() + 8 + i * 8, &y, 8);
  }
  return result;
}

// A worker with the hash backend and two shards that answer at once, unless told otherwise.
class Lab {
 public:
  explicit Lab(AttentionConfig c = {}, HashModel m = {})
      : model(m), backend(m, &pool), config(Fit(c, m)), core(config, &pool) {
    Place({{0, 1}, {0, 1}});
  }

  // holders: [0] the shards of even experts, [1] of odd ones.
  std::vector<std::string> warnings;
  void Place(std::vector<std::vector<uint32_t>> holders, uint32_t shards = 2) {
    std::vector<PlacementShard> list;
    for (uint32_t s = 0; s < shards; ++s) list.push_back({ShardId(s), "s" + std::to_string(s), "", 1});
    std::vector<PlacementView::Entry> entries;
    for (uint16_t l = 1; l < model.layers; ++l) {
      for (uint16_t e = 0; e < model.experts; ++e) {
        PlacementView::Entry entry{LayerId(l), ExpertId(e), {}};
        for (uint32_t s : holders[e % 2]) entry.shards.push_back(ShardId(s));
        entries.push_back(entry);
      }
    }
    Post(attention_event::PlacementUpdate{std::make_shared<PlacementView>(
        Epoch::Make(1, ++epoch), model.layers, model.experts, list, entries)});
  }
  void Post(AttentionEvent event) { events.push_back(std::move(event)); }
  void Send(SessionSubmit submit, SessionId session = 1) {
    Post(attention_event::Submit{session, std::move(submit)});
  }
  // Handles events until none is left.
  void Settle(int steps = 1000000) {
    while (!events.empty() && steps-- > 0) {
      AttentionEvent e = std::move(events.front());
      events.pop_front();
      Handle(std::move(e));
    }
  }
  void Wait(MonoTime us) {
    now += us;
    Post(attention_event::Timer{});
    Settle();
  }
  void ChannelUp(ShardId shard, Credit given) {
    for (Lane lane : {Lane::kDecode, Lane::kBulk}) Post(attention_event::ChannelUp{shard, lane, 1, given});
  }
  void ChannelDown(uint32_t shard) {
    down[shard] = true;
    std::erase_if(held, [&](const auto& c) { return c.shard.value == shard; });
    for (Lane lane : {Lane::kDecode, Lane::kBulk}) {
      Post(attention_event::ChannelDown{ShardId(shard), lane, absl::UnavailableError("gone")});
    }
  }
  void Revive(uint32_t shard) {
    down[shard] = false;
    ChannelUp(ShardId(shard), credit);
  }
  void Answer(const attention_action::SendCall& c) {
    frame::View view;
    const WireFrame wire = c.body->Frame(c.call, c.options.epoch, c.options.budget_us, c.options.flags);
    ASSERT_TRUE(frame::Decode(wire, &view).ok());
    CallResult result = HashAnswer(c.call, view, &pool);
    rows_sent[c.shard.value][static_cast<size_t>(c.lane)] += c.body->n_rows();
    Post(attention_event::ChannelResult{c.shard, c.lane, std::move(result)});
    if (return_credit) {
      Credit& given = granted[{c.shard.value, c.lane}];
      given.rows += c.body->n_rows();
      given.bytes += c.body->frame_bytes();
      Post(attention_event::ChannelCredit{
          c.shard, c.lane, {credit.rows + given.rows, credit.bytes + given.bytes}});
    }
  }
  void Reject(const attention_action::SendCall& c, frame::RejectCode code) {
    Post(attention_event::ChannelReject{c.shard, c.lane, {c.call, code, 0, ""}});
  }
  void Release() {
    hold = false;
    for (const auto& c : std::exchange(held, {})) Answer(c);
    Settle();
  }
  const Outcome& Of(uint64_t request) { return outcomes[request]; }

  BufferPool pool;
  HashModel model;
  HashLayerBackend backend;
  AttentionConfig config;
  AttentionCore core;
  MonoTime now = 1;
  uint64_t epoch = 0;
  std::deque<AttentionEvent> events;
  std::map<uint64_t, Outcome> outcomes;
  bool hold = false, return_credit = true;
  std::map<uint32_t, bool> down;
  std::map<uint32_t, frame::RejectCode> rejecting;
  std::vector<attention_action::SendCall> held;
  Credit credit{16384, 1 << 28};
  std::map<std::pair<uint32_t, Lane>, Credit> granted;
  std::map<uint32_t, std::array<uint64_t, kLanes>> rows_sent;
  uint32_t cancelled_calls = 0, abandoned = 0, disconnected = 0;
  uint32_t requests_per_call_max = 0;

 private:
  static AttentionConfig Fit(AttentionConfig c, const HashModel& m) {
    c.shape = HashShape(m);
    c.manifest = "m";
    return c;
  }
  void Handle(AttentionEvent e) {
    std::vector<AttentionAction> actions;
    core.Handle(now, std::move(e), &actions);
    for (AttentionAction& a : actions) std::visit([this](auto& x) { Do(x); }, a);
  }
  void Do(attention_action::RunStage& a) {
    backend.Run(a.job, [this](StageOut out) { Post(attention_event::StageDone{std::move(out)}); });
  }
  void Do(attention_action::AbandonFlight& a) {
    ++abandoned;
    backend.Abandon(a.flight);
  }
  void Do(attention_action::SendCall& a) {
    if (down[a.shard.value]) return;
    if (rejecting.contains(a.shard.value)) return Reject(a, rejecting[a.shard.value]);
    if (hold)
      held.push_back(a);
    else
      Answer(a);
  }
  void Do(attention_action::CancelCall& a) {
    ++cancelled_calls;
    std::erase_if(held, [&](const auto& c) { return c.call == a.call; });
  }
  void Do(attention_action::Emit& a) {
    for (const auto& x : a.events.accepted) {
      ++outcomes[x.request].accepted;
      outcomes[x.request].cached = x.cached_tokens;
    }
    for (const auto& t : a.events.tokens) {
      Outcome& o = outcomes[t.request];
      if (t.position < prompt_size[t.request])
        o.prompt_logprobs[t.position] = t.logprob;
      else
        o.tokens[t.choice].push_back(t.token);
    }
    for (const auto& f : a.events.finishes) {
      ASSERT_TRUE(outcomes[f.request].finishes.emplace(f.choice, f.reason).second) << "a choice ended twice";
    }
    for (const auto& e : a.events.errors) {
      ++outcomes[e.request].errors;
      outcomes[e.request].error_code = static_cast<uint32_t>(e.code);
      outcomes[e.request].error_text = e.text;
    }
  }
  void Do(attention_action::ConnectShard& a) { ChannelUp(a.shard.id, credit); }
  void Do(attention_action::DisconnectShard&) { ++disconnected; }
  void Do(attention_action::Log& a) {
    if (a.severity == attention_action::Severity::kWarn) warnings.push_back(a.text);
  }
  void Do(attention_action::Observe& a) {
    if (a.metric == attention_action::Metric::kRequestsPerCall) {
      requests_per_call_max = std::max(requests_per_call_max, static_cast<uint32_t>(a.value));
    }
  }

 public:
  std::map<uint64_t, size_t> prompt_size;
};

inline Outcome Alone(SessionSubmit submit, AttentionConfig config = {}, HashModel model = {}) {
  Lab lab(config, model);
  const uint64_t id = submit.request;
  lab.prompt_size[id] = submit.prompt.size();
  lab.Send(std::move(submit));
  lab.Settle();
  EXPECT_EQ(lab.core.Leaks(), "");
  return lab.Of(id);
}

// Requests 1 to 12 give the tokens in `want` whatever the chunks, flights, neighbours and cache.
inline void ExpectTokensUnderEveryPlan(const std::map<uint64_t, Tokens>& want, const HashModel& model,
                                       uint32_t snapshot_tokens_of_4_flights) {
  for (uint32_t chunk : {1u, 7u, 64u, 0u}) {
    for (uint32_t flights : {1u, 2u, 4u}) {
      AttentionConfig config;
      config.prefill_chunk = chunk;
      config.flights = flights;
      config.flight_rows_max = 40;
      config.prefix_cache = flights != 2;
      if (flights == 4) config.state_snapshot_tokens = snapshot_tokens_of_4_flights;
      Lab lab(config, model);
      for (uint64_t r = 1; r <= 12; ++r) lab.Send(Submit(r, 5 + r * 7, 12));
      lab.Settle();
      for (uint64_t r = 1; r <= 12; ++r)
        EXPECT_EQ(lab.Of(r).tokens.at(0), want.at(r)) << chunk << " " << flights;
      EXPECT_GT(lab.requests_per_call_max, 1u) << "not batched";
      EXPECT_EQ(lab.core.Leaks(), "");
    }
  }
}

}  // namespace consilium
