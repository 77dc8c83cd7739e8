#include "services/attention/attention_core.h"

#include <algorithm>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "services/attention/attention_impl.h"

namespace consilium {

AttentionCore::AttentionCore(const AttentionConfig& config, BufferPool* pool)
    : impl_(std::make_unique<Impl>(config, pool)) {}
AttentionCore::~AttentionCore() = default;
void AttentionCore::Handle(MonoTime now, AttentionEvent event, std::vector<AttentionAction>* out) {
  impl_->Handle(now, std::move(event), out);
}
MonoTime AttentionCore::next_deadline() const { return impl_->next_deadline(); }
size_t AttentionCore::live_requests() const { return impl_->live_requests(); }
const AttentionStats& AttentionCore::stats() const { return impl_->stats(); }
std::string AttentionCore::Leaks() const { return impl_->Leaks(); }

AttentionCore::Impl::Impl(const AttentionConfig& config, BufferPool* pool)
    : config_(config),
      pool_(pool),
      limits_{config.flights, config.flight_rows_max, config.prefill_chunk, StepLimits().split_rows_min},
      kv_(config.shape.kv_blocks, config.prefix_cache, config.shape.state_slots),
      flights_(config.flights),
      planner_(pool) {
  CHECK(config.flights >= 1 && config.flights <= kFlightsMax);
  CHECK(config.flight_rows_max >= 1 && config.flight_rows_max <= kFlightRowsMax);
  CHECK(config.shape.state_slots == 0 || config.shape.state_slots >= kStateSlotsMin);
  CHECK(config.state_snapshot_tokens > 0 && config.state_snapshot_tokens % kKvBlockTokens == 0);
  stats_.expert_rows.assign(size_t{config.shape.layers} * config.shape.experts, 0);
}

void AttentionCore::Impl::Handle(MonoTime now, AttentionEvent event, std::vector<AttentionAction>* out) {
  now_ = std::max(now_, now);
  out_ = out;
  std::visit([this](auto& e) { On(e); }, event);
  ExpireDeadlines();
  Pump();
  FreeEnded();
  FlushEvents();
  out_ = nullptr;
}

// Everything that can go on does: waiting slots, new flights.
void AttentionCore::Impl::Pump() {
  for (uint32_t f = 0; f < flights_.size(); ++f) {
    Flight& flight = flights_[f];
    if (!flight.active || flight.unassigned.empty()) continue;
    if (assign_wanted_ || flight.retry_at <= now_) Assign(f);
  }
  assign_wanted_ = false;
  if (plan_wanted_) Plan();
  RetireShards();
}

SessionEvents& AttentionCore::Impl::Pending(SessionId session) {
  const auto at = std::lower_bound(pending_.begin(), pending_.end(), session,
                                   [](const auto& entry, SessionId id) { return entry.first < id; });
  if (at != pending_.end() && at->first == session) return at->second;
  return pending_.emplace(at, session, SessionEvents())->second;
}

void AttentionCore::Impl::FlushEvents() {
  for (auto& [session, events] : pending_) {
    events.load = {static_cast<uint32_t>(by_key_.size()) - waiting_, waiting_,
                   kv_.total_blocks() - kv_.available_blocks(), kv_.total_blocks()};
    out_->emplace_back(attention_action::Emit{session, std::move(events)});
  }
  pending_.clear();
}

MonoTime AttentionCore::Impl::next_deadline() const {
  MonoTime t = deadlines_.empty() ? kNever : deadlines_.begin()->first;
  for (const Flight& flight : flights_) {
    if (flight.active && !flight.unassigned.empty()) t = std::min(t, flight.retry_at);
  }
  return t;
}

void AttentionCore::Impl::LogLine(attention_action::Severity severity, const std::string& request_id,
                                  std::string text) {
  out_->emplace_back(attention_action::Log{severity, request_id, std::move(text)});
}

void AttentionCore::Impl::Observe(attention_action::Metric metric, double value) {
  out_->emplace_back(attention_action::Observe{metric, value});
}

void AttentionCore::Impl::On(attention_event::Cancel& e) {
  auto it = by_key_.find({e.session, e.request});
  if (it == by_key_.end()) return;  // it ended meanwhile
  Request* request = it->second;
  for (Sequence& sequence : request->choices) {
    if (request->ended) break;
    if (!sequence.done && (e.choice < 0 || static_cast<uint32_t>(e.choice) == sequence.choice)) {
      FinishChoice(&sequence, FinishReason::kCancelled);
    }
  }
}

void AttentionCore::Impl::On(attention_event::SessionClosed& e) {
  for (auto it = by_key_.lower_bound({e.session, 0}); it != by_key_.end() && it->first.first == e.session;) {
    Request* request = it->second;
    ++it;  // ending erases the entry
    FailRequest(request, absl::CancelledError("session closed"), 0, false);
  }
  std::erase_if(pending_, [&](const auto& entry) { return entry.first == e.session; });
}

void AttentionCore::Impl::On(attention_event::Drain&) { draining_ = true; }

const AttentionStats& AttentionCore::Impl::stats() {
  stats_.requests_waiting = waiting_;
  stats_.requests_running = static_cast<uint32_t>(by_key_.size()) - waiting_;
  stats_.flights_now = static_cast<uint32_t>(
      std::count_if(flights_.begin(), flights_.end(), [](const Flight& f) { return f.active; }));
  stats_.kv_blocks_total = kv_.total_blocks();
  stats_.kv_blocks_used = kv_.total_blocks() - kv_.available_blocks();
  stats_.kv_blocks_cached = kv_.cached_blocks();
  stats_.state_slots_total = kv_.states().total();
  stats_.state_slots_used = kv_.states().total() - kv_.states().available();
  stats_.state_slots_idle = kv_.states().idle();
  stats_.epoch = placement_ != nullptr ? placement_->epoch().value : 0;
  stats_.calls_now = static_cast<uint32_t>(calls_.size());
  stats_.calls_queued = 0;
  for (auto& [name, shard] : shard_stats_) {
    shard.name = name;
    shard.up[0] = shard.up[1] = false;
  }
  for (const auto& [id, shard] : shards_) {
    for (const Channel& c : shard.lanes) stats_.calls_queued += static_cast<uint32_t>(c.queue.size());
    shard.stats->shard = id;
    for (size_t l = 0; l < kLanes; ++l) shard.stats->up[l] = shard.stats->up[l] || shard.lanes[l].up;
  }
  stats_.shards.clear();
  for (const auto& [name, shard] : shard_stats_) stats_.shards.push_back(shard);
  return stats_;
}

std::string AttentionCore::Impl::Leaks() const {
  if (!by_key_.empty() || !requests_.empty()) return std::to_string(requests_.size()) + " requests";
  if (!schedule_.empty() || !deadlines_.empty()) return "scheduled sequences or deadlines";
  if (waiting_ != 0) return "waiting count " + std::to_string(waiting_);
  for (const Flight& f : flights_) {
    if (f.active) return "an active flight";
    if (f.wire_rows || f.slots.size() != 0 || !f.calls.empty()) return "a closed flight holds buffers";
  }
  if (!calls_.empty()) return std::to_string(calls_.size()) + " calls";
  for (const auto& [id, shard] : shards_) {
    for (const Channel& c : shard.lanes) {
      if (!c.queue.empty() || !c.outstanding.empty() || c.rows_in_flight != 0) {
        return "shard " + std::to_string(id.value) + " has open calls";
      }
    }
  }
  if (kv_.open_sequences() != 0) return std::to_string(kv_.open_sequences()) + " KV sequences";
  if (kv_.available_blocks() != kv_.total_blocks()) return "held KV blocks";
  if (kv_.states().available() != kv_.states().total()) return "held states";
  return kv_.Check();
}

}  // namespace consilium
