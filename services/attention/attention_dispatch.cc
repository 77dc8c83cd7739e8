// Expert shards as the worker sees them: channels, credit, calls, and what happens when a call fails.
#include <algorithm>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "services/attention/attention_impl.h"

namespace consilium {
namespace {

constexpr double kEwma = 0.1;
// A class or model mismatch is not cured by waiting; a new placement or stream may cure it.
// Shards that are counted one by one; names are stable over restarts.
constexpr size_t kShardNamesMax = 1024;
constexpr MonoTime kMismatchAvoidUs = 5'000'000;

bool IsOwnBug(frame::RejectCode code) {
  return code == frame::RejectCode::kBadFrame || code == frame::RejectCode::kOverCredit;
}
bool IsMismatch(frame::RejectCode code) {
  return code == frame::RejectCode::kClassMismatch || code == frame::RejectCode::kUnknownModel;
}
size_t Ix(Lane lane) { return static_cast<size_t>(lane); }

}  // namespace

attention::Shard* AttentionCore::Impl::FindShard(ShardId id) {
  auto it = shards_.find(id);
  return it == shards_.end() ? nullptr : &it->second;
}

// ---- assigning slots to shards

// A replica that did not refuse the expert lately. *retry_at: when one that did may be asked again.
ShardId AttentionCore::Impl::Alternative(const Flight& f, ExpertId expert, MonoTime* retry_at) const {
  for (ShardId id : placement_->replicas(f.layer, expert)) {
    auto shard = shards_.find(id);
    if (shard == shards_.end() || shard->second.retired || !shard->second.lanes[Ix(f.lane())].up) continue;
    auto avoided = avoid_.find({id, {f.layer, expert}});
    if (avoided == avoid_.end() || avoided->second <= now_) return id;
    *retry_at = std::min(*retry_at, avoided->second);
  }
  return kNoShard;
}

void AttentionCore::Impl::ChooseShards(Flight* f) {
  loads_.clear();
  for (const auto& [id, shard] : shards_) {
    const Channel& channel = shard.lanes[Ix(f->lane())];
    ShardLoad load;
    load.shard = id;
    load.up = channel.up && !shard.retired;
    load.rows_in_flight = channel.rows_in_flight;
    load.queued_rows = shard.queued_rows;
    load.us_per_row = shard.us_per_row;
    loads_.push_back(load);
  }
  wanted_.clear();
  for (uint32_t slot : f->unassigned) wanted_.push_back(f->experts[slot]);
  ChooseReplicas(*placement_, f->layer, wanted_, loads_, &choice_);
  if (avoid_.empty()) return;
  std::erase_if(avoid_, [this](const auto& entry) { return entry.second <= now_; });
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const ExpertId expert(wanted_[i]);
    ShardId& shard = choice_.shards[i];
    if (shard == kNoShard || !avoid_.contains({shard, {f->layer, expert}})) continue;
    shard = Alternative(*f, expert, &f->retry_at);
  }
}

DispatchSource AttentionCore::Impl::SourceOf(const Flight& f) const {
  DispatchSource source;
  source.model = config_.model;
  source.class_ix = config_.class_ix;
  source.layer = f.layer;
  source.top_k = config_.shape.top_k;
  source.hidden = config_.shape.hidden;
  source.row_bytes_in = config_.shape.row_bytes_in;
  source.row_bytes_out = config_.shape.row_bytes_out;
  source.dtype_in = static_cast<frame::DtypeCode>(config_.shape.dtype_in);
  source.dtype_out = static_cast<frame::DtypeCode>(config_.shape.dtype_out);
  source.experts = f.experts;
  source.request_tag = f.request_tag;
  source.priority = f.priority;
  source.rows = f.wire_rows.data();
  return source;
}

void AttentionCore::Impl::Assign(uint32_t id) {
  Flight& f = flights_[id];
  f.retry_at = kNever;
  if (!f.active || f.doomed || f.unassigned.empty() || placement_ == nullptr) return;
  ChooseShards(&f);
  if (!f.failed.empty()) ResendWhole(id);
  ready_slots_.clear();
  ready_shards_.clear();
  missing_.clear();
  for (size_t i = 0; i < f.unassigned.size(); ++i) {
    if (choice_.shards[i] == kNoShard) {
      missing_.push_back(f.unassigned[i]);
    } else {
      ready_slots_.push_back(f.unassigned[i]);
      ready_shards_.push_back(choice_.shards[i]);
    }
  }
  f.unassigned.swap(missing_);
  planned_.clear();
  planner_.Plan(SourceOf(f), ready_slots_, ready_shards_, &planned_);
  for (PlannedCall& call : planned_) QueueCall(id, std::move(call));
}

// The body of a call is immutable and shared by its retries: a failed call whose slots all go to one shard
// again is sent as it was. What waits whole for a replica is kept; what is split up is planned anew.
void AttentionCore::Impl::ResendWhole(uint32_t id) {
  Flight& f = flights_[id];
  const auto index_of = [&f](uint32_t slot) {
    return static_cast<size_t>(std::lower_bound(f.unassigned.begin(), f.unassigned.end(), slot) -
                               f.unassigned.begin());
  };
  std::vector<PlannedCall> waiting;
  std::vector<bool> sent(f.unassigned.size(), false);
  for (PlannedCall& call : f.failed) {
    const size_t first = index_of(call.slots().front());
    bool whole = true;
    for (uint32_t slot : call.slots()) {
      const size_t i = index_of(slot);
      whole = whole && i < f.unassigned.size() && f.unassigned[i] == slot &&
              choice_.shards[i] == choice_.shards[first];
    }
    if (!whole) continue;
    call.shard = choice_.shards[first];
    if (call.shard == kNoShard) {
      waiting.push_back(std::move(call));
      continue;
    }
    for (uint32_t slot : call.slots()) sent[index_of(slot)] = true;
    QueueCall(id, std::move(call));
  }
  f.failed = std::move(waiting);
  size_t kept = 0;
  for (size_t i = 0; i < sent.size(); ++i) {
    if (sent[i]) continue;
    f.unassigned[kept] = f.unassigned[i];
    choice_.shards[kept++] = choice_.shards[i];
  }
  f.unassigned.resize(kept);
  choice_.shards.resize(kept);
}

void AttentionCore::Impl::QueueCall(uint32_t flight, PlannedCall plan) {
  Flight& f = flights_[flight];
  Shard* shard = FindShard(plan.shard);
  Channel& channel = shard->lanes[Ix(f.lane())];
  Call call;
  call.id = next_call_++;
  call.plan = std::move(plan);
  call.flight = flight;
  call.lane = f.lane();
  if (f.attempts > 0) {
    call.flags = frame::kRetry;
    ++stats_.resends;
  }
  channel.rows_in_flight += call.plan.body->n_rows();
  f.calls.push_back(call.id);
  channel.queue.push_back(call.id);
  calls_.push_back(std::move(call));
  PumpChannel(shard, f.lane());
}

uint32_t AttentionCore::Impl::CallBudgetUs(const Flight& f) const {
  MonoTime latest = now_ + 1000;
  for (const attention::FlightEntry& e : f.entries) latest = std::max(latest, e.sequence->request->deadline);
  return static_cast<uint32_t>(std::min<MonoTime>(latest - now_, 0xFFFFFFFF));
}

// Sends what the credit allows, in order.
void AttentionCore::Impl::PumpChannel(Shard* shard, Lane lane) {
  Channel& channel = shard->lanes[Ix(lane)];
  if (!channel.up) return;
  size_t sent = 0;
  for (; sent < channel.queue.size(); ++sent) {
    Call* call = FindCall(channel.queue[sent]);
    const CallBody& body = *call->plan.body;
    if (channel.sent.rows + body.n_rows() > channel.credit.rows ||
        channel.sent.bytes + body.frame_bytes() > channel.credit.bytes) {
      break;
    }
    SendCall(shard, lane, call);
  }
  channel.queue.erase(channel.queue.begin(), channel.queue.begin() + static_cast<ptrdiff_t>(sent));
}

void AttentionCore::Impl::SendCall(Shard* shard, Lane lane, Call* call) {
  Channel& channel = shard->lanes[Ix(lane)];
  const CallBody& body = *call->plan.body;
  channel.sent.rows += body.n_rows();
  channel.sent.bytes += body.frame_bytes();
  channel.outstanding.push_back(call->id);
  call->sent = true;
  call->sent_at = now_;
  ++shard->stats->calls;
  shard->stats->rows += body.n_slots();
  shard->stats->bytes_out += body.frame_bytes();
  Observe(attention_action::Metric::kCallRows, body.n_rows());
  Observe(attention_action::Metric::kRequestsPerCall, call->plan.requests);
  CallOptions options;
  options.epoch = placement_->epoch();
  options.budget_us = CallBudgetUs(flights_[call->flight]);
  options.flags = call->flags;
  out_->emplace_back(
      attention_action::SendCall{shard->info.id, lane, CallId(call->id), call->plan.body, options});
}

// ---- the end of calls

attention::Call* AttentionCore::Impl::FindCall(uint64_t id) {
  const auto at = std::lower_bound(calls_.begin(), calls_.end(), id,
                                   [](const Call& call, uint64_t wanted) { return call.id < wanted; });
  return at != calls_.end() && at->id == id ? &*at : nullptr;
}

std::optional<attention::Call> AttentionCore::Impl::TakeCall(ShardId shard_id, Lane lane, uint64_t id) {
  Call* found = FindCall(id);
  if (found == nullptr || found->plan.shard != shard_id || found->lane != lane) return std::nullopt;
  Call call = std::move(*found);
  calls_.erase(calls_.begin() + (found - calls_.data()));
  std::erase(flights_[call.flight].calls, id);
  Channel& channel = shards_.at(shard_id).lanes[Ix(lane)];
  channel.rows_in_flight -= call.plan.body->n_rows();
  std::erase(call.sent ? channel.outstanding : channel.queue, id);
  return call;
}

void AttentionCore::Impl::Unassign(Call call) {
  Flight& f = flights_[call.flight];
  for (uint32_t slot : call.plan.slots()) {
    if (!f.slots.filled(slot)) f.unassigned.push_back(slot);
  }
  std::sort(f.unassigned.begin(), f.unassigned.end());
  ++f.attempts;
  f.failed.push_back(std::move(call.plan));
}

void AttentionCore::Impl::CancelCalls(Flight* f) {
  while (!f->calls.empty()) {
    const uint64_t id = f->calls.front();
    const Call* open = FindCall(id);
    const ShardId shard = open->plan.shard;
    const Lane lane = open->lane;
    const std::optional<Call> call = TakeCall(shard, lane, id);
    if (call->sent) out_->emplace_back(attention_action::CancelCall{shard, lane, CallId(id)});
  }
}

void AttentionCore::Impl::LearnTiming(Shard* shard, const Call& call, const frame::Timing& t) {
  shard->queued_rows = t.queued_rows;
  if (t.batch_rows > 0) {
    const double us = static_cast<double>(t.service_us) / t.batch_rows;
    shard->us_per_row += kEwma * (std::max(us, 0.01) - shard->us_per_row);
  }
  const double round_trip = static_cast<double>(now_ - call.sent_at);
  const double service = static_cast<double>(t.queue_us) + t.service_us;
  service_us_ += kEwma * (service - service_us_);
  link_us_ += kEwma * (std::max(0.0, round_trip - service) - link_us_);
  Observe(attention_action::Metric::kRoundTripSeconds, round_trip * 1e-6);
}

void AttentionCore::Impl::On(attention_event::ChannelResult& e) {
  Shard* shard = FindShard(e.shard);
  const Call* open = FindCall(e.result.call.value);
  if (shard == nullptr || open == nullptr || !open->sent || open->plan.shard != e.shard ||
      open->lane != e.lane) {
    ++stats_.unknown_results;
    return;
  }
  const uint32_t flight = open->flight;
  Flight& f = flights_[flight];
  Applied applied;
  const absl::Status status =
      ApplyResult(open->plan, e.result, config_.shape.row_bytes_out, &f.slots, &applied);
  stats_.duplicates += applied.duplicates;
  shard->stats->bytes_in += e.result.buffer.size();  // the whole frame
  if (applied.mismatches > 0) {
    stats_.mismatches += applied.mismatches;
    LogLine(attention_action::Severity::kWarn, "",
            "EXACTNESS VIOLATION: shard " + shard->info.name + " gave other bits for " +
                std::to_string(applied.mismatches) + " slots of layer " + std::to_string(f.layer.value));
  }
  if (!status.ok() || e.result.last) {
    Call call = *TakeCall(e.shard, e.lane, e.result.call.value);
    LearnTiming(shard, call, e.result.timing);
    ++shard->stats->results;
    const auto slots = call.plan.slots();
    const bool whole =
        std::all_of(slots.begin(), slots.end(), [&](uint32_t slot) { return f.slots.filled(slot); });
    if (!whole) {
      LogLine(attention_action::Severity::kWarn, "",
              "shard " + shard->info.name + ": " +
                  (status.ok() ? std::string("a result without all its slots") : ToString(status)));
      Avoid(e.shard, call, now_ + config_.resend_backoff_us);
      Unassign(std::move(call));
      Assign(flight);
    }
  }
  MaybeCombine(flight);
}

void AttentionCore::Impl::Avoid(ShardId shard, const Call& call, MonoTime until) {
  const Flight& f = flights_[call.flight];
  for (uint32_t slot : call.plan.slots()) avoid_[{shard, {f.layer, ExpertId(f.experts[slot])}}] = until;
}

void AttentionCore::Impl::On(attention_event::ChannelReject& e) {
  Shard* shard = FindShard(e.shard);
  std::optional<Call> call;
  if (shard != nullptr) call = TakeCall(e.shard, e.lane, e.reject.call.value);
  if (!call.has_value()) {
    ++stats_.unknown_results;
    return;
  }
  ++shard->stats->rejects;
  const uint32_t flight = call->flight;
  Flight& f = flights_[flight];
  const frame::RejectCode code = e.reject.code;
  const std::string text = "shard " + shard->info.name +
                           " rejected a call: " + std::string(frame::RejectName(code)) +
                           (e.reject.text.empty() ? "" : " " + e.reject.text);
  if (IsOwnBug(code)) {
    // Resending the same would not help: the requests of this call fail, the others of the flight start over.
    std::set<uint32_t> rows;
    for (uint32_t slot : call->plan.slots()) rows.insert(slot / config_.shape.top_k);
    std::set<Request*> guilty;
    for (uint32_t row : rows) {
      guilty.insert(f.entries[f.batch.rows[row].sequence].sequence->request);
    }
    Unassign(*std::move(call));
    Abandon(flight);
    for (const auto& [serial, r] : requests_) {  // in order of arrival
      if (guilty.contains(r.get()) && !r->ended) FailRequest(r.get(), Internal(text), 0, true);
    }
    return;
  }
  uint64_t wait_us = uint64_t{config_.resend_backoff_us} << std::min(f.attempts, 16u);
  if (code == frame::RejectCode::kOverloaded || code == frame::RejectCode::kLoading) {
    wait_us = std::max<uint64_t>(wait_us, e.reject.arg);
  }
  MonoTime until = now_ + static_cast<MonoTime>(std::min<uint64_t>(wait_us, config_.resend_backoff_max_us));
  if (IsMismatch(code)) {
    until = now_ + kMismatchAvoidUs;
    LogLine(attention_action::Severity::kWarn, "", text);
  }
  if (code != frame::RejectCode::kCorrupt || f.attempts > 0) Avoid(e.shard, *call, until);
  Unassign(*std::move(call));
  Assign(flight);
}

// ---- channels and placement

void AttentionCore::Impl::On(attention_event::ChannelUp& e) {
  Shard* shard = FindShard(e.shard);
  if (shard == nullptr) return;
  Channel& channel = shard->lanes[Ix(e.lane)];
  if (channel.up) LoseChannel(shard, e.lane);
  channel.up = true;
  channel.refusal.clear();
  channel.credit = e.credit;
  channel.sent = Credit{};
  std::erase_if(avoid_, [&](const auto& entry) { return entry.first.first == e.shard; });
  PumpChannel(shard, e.lane);
  assign_wanted_ = true;
}

void AttentionCore::Impl::On(attention_event::ChannelCredit& e) {
  Shard* shard = FindShard(e.shard);
  if (shard == nullptr || !shard->lanes[Ix(e.lane)].up) return;
  Credit& credit = shard->lanes[Ix(e.lane)].credit;
  credit.rows = std::max(credit.rows, e.credit.rows);  // cumulative
  credit.bytes = std::max(credit.bytes, e.credit.bytes);
  PumpChannel(shard, e.lane);
}

void AttentionCore::Impl::On(attention_event::ChannelHeartbeat& e) {
  if (Shard* shard = FindShard(e.shard)) shard->queued_rows = e.timing.queued_rows;
}

void AttentionCore::Impl::On(attention_event::ChannelDrain& e) {
  // Its calls will be rejected with DRAINING when it no longer takes them; the placement follows.
  if (Shard* shard = FindShard(e.shard))
    LogLine(attention_action::Severity::kInfo, "", "shard " + shard->info.name + " drains");
}

void AttentionCore::Impl::On(attention_event::ChannelDown& e) {
  Shard* shard = FindShard(e.shard);
  if (shard == nullptr) return;
  Channel& channel = shard->lanes[Ix(e.lane)];
  if (channel.up) {
    LogLine(attention_action::Severity::kInfo, "",
            "shard " + shard->info.name + ": stream broke: " + ToString(e.status));
  } else if (absl::IsFailedPrecondition(e.status) && channel.refusal != Message(e.status)) {
    channel.refusal = Message(e.status);
    LogLine(attention_action::Severity::kWarn, "",
            "shard " + shard->info.name + " cannot be used: " + channel.refusal);
  }
  LoseChannel(shard, e.lane);
  assign_wanted_ = true;
}

// The stream broke: its calls and those that waited for credit go elsewhere.
void AttentionCore::Impl::LoseChannel(Shard* shard, Lane lane) {
  Channel& channel = shard->lanes[Ix(lane)];
  channel.up = false;
  std::vector<uint64_t> ids(channel.outstanding.begin(), channel.outstanding.end());
  shard->stats->lost += ids.size();
  ids.insert(ids.end(), channel.queue.begin(), channel.queue.end());
  for (uint64_t id : ids) Unassign(*TakeCall(shard->info.id, lane, id));
  channel.credit = channel.sent = Credit{};
  assign_wanted_ = true;
}

void AttentionCore::Impl::On(attention_event::PlacementUpdate& e) {
  if (placement_ != nullptr && e.view->epoch() <= placement_->epoch()) return;
  placement_ = e.view;
  for (const PlacementShard& info : placement_->shards()) {
    Shard* shard = FindShard(info.id);
    if (shard != nullptr && shard->info.address != info.address) {
      for (size_t l = 0; l < kLanes; ++l) LoseChannel(shard, static_cast<Lane>(l));
      out_->emplace_back(attention_action::DisconnectShard{info.id});
      shards_.erase(info.id);
      shard = nullptr;
    }
    if (shard == nullptr) {
      shard = &shards_[info.id];
      out_->emplace_back(attention_action::ConnectShard{info});
    }
    shard->info = info;
    shard->retired = false;
    const bool known = shard_stats_.size() < kShardNamesMax || shard_stats_.contains(info.name);
    shard->stats = &shard_stats_[known ? info.name : "other"];
  }
  for (auto& [id, shard] : shards_) shard.retired = placement_->FindShard(id) == nullptr;
  avoid_.clear();
  assign_wanted_ = true;
}

// Make before break: a shard that left the placement may finish the calls it has.
void AttentionCore::Impl::RetireShards() {
  for (auto it = shards_.begin(); it != shards_.end();) {
    Shard& shard = it->second;
    bool idle = shard.retired;
    for (const Channel& c : shard.lanes) idle = idle && c.outstanding.empty() && c.queue.empty();
    if (!idle) {
      ++it;
      continue;
    }
    out_->emplace_back(attention_action::DisconnectShard{it->first});
    it = shards_.erase(it);
  }
}

}  // namespace consilium
