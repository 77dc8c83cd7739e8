// Which experts are here: absent -> loading -> verified -> ready -> draining -> absent, driven by commands.
#include <algorithm>

#include "common/base/status.h"
#include "services/expert/expert_core.h"
#include "services/expert/expert_core_internal.h"

namespace consilium {

const ExpertCore::Host* ExpertCore::FindHost(ExpertKey key) const {
  if (key.layer.value >= options_.layers || key.expert.value >= options_.experts) return nullptr;
  return &hosts_[size_t{key.layer.value} * options_.experts + key.expert.value];
}
ExpertCore::Host* ExpertCore::FindHost(ExpertKey key) {
  return const_cast<Host*>(static_cast<const ExpertCore*>(this)->FindHost(key));
}

HostState ExpertCore::state(ExpertKey key) const {
  const Host* host = FindHost(key);
  return host == nullptr ? HostState::kAbsent : host->state;
}

void ExpertCore::SetState(Host* host, HostState state, Actions* out) {
  if (host->state == HostState::kReady) --experts_ready_;
  if (state == HostState::kReady) ++experts_ready_;
  host->state = state;
  out->emplace_back(expert_action::HostChanged{host->key, state});
}

void ExpertCore::On(expert_event::Command& e, Actions* out) {
  using Kind = expert_event::Command::Kind;
  if (const auto known = ops_.find(e.op_id); known != ops_.end()) {
    const Op& op = known->second;
    if (op.done) out->emplace_back(expert_action::OpDone{e.op_id, op.ok, op.text});
    return;  // in progress: answered when it is done
  }
  ops_.emplace(e.op_id, Op{});
  if (e.kind == Kind::kDrain && e.experts.empty()) DrainShard(e.op_id, out);
  for (const ExpertKey& key : e.experts) {
    Host* host = FindHost(key);
    std::string error;
    if (host == nullptr || !host->known)
      error = Name(key) + ": the model has no such expert";
    else if (e.kind == Kind::kLoad)
      error = StartLoad(host, e.op_id, out);
    else
      error = StartDrop(host, e.kind == Kind::kDrop, e.op_id, out);
    if (error.empty()) continue;
    ++ops_.at(e.op_id).remaining;
    OpStep(e.op_id, error, out);
  }
  OpStep(e.op_id, "", out);
}

std::string ExpertCore::StartLoad(Host* host, uint64_t op_id, Actions* out) {
  switch (host->state) {
    case HostState::kReady:
      return "";
    case HostState::kDraining:
      host->drop = false;
      FinishWaiters(host, Name(host->key) + ": a later LOAD keeps it", out);
      SetState(host, HostState::kReady, out);
      return "";
    case HostState::kLoading:
    case HostState::kVerified:
      if (std::exchange(host->drop, false))
        FinishWaiters(host, Name(host->key) + ": a later LOAD keeps it", out);
      WaitFor(host, op_id);
      return "";
    case HostState::kAbsent:
      break;
  }
  if (options_.capacity_bytes > 0 && loaded_bytes_ + host->bytes > options_.capacity_bytes) {
    return Name(host->key) + ": no room, expected at most " + std::to_string(options_.capacity_bytes) +
           " bytes, got " + std::to_string(loaded_bytes_ + host->bytes);
  }
  loaded_bytes_ += host->bytes;
  ++loads_pending_;
  host->drop = false;
  host->load_started = now_;
  WaitFor(host, op_id);
  SetState(host, HostState::kLoading, out);
  out->emplace_back(expert_action::Load{host->key});
  return "";
}

// `drop` false: drain only, the weights stay.
std::string ExpertCore::StartDrop(Host* host, bool drop, uint64_t op_id, Actions* out) {
  if (host->state == HostState::kAbsent) return "";
  if (host->state == HostState::kLoading) {
    if (!drop) return Name(host->key) + ": is loading, cannot be drained";
    if (!std::exchange(host->drop, true)) FinishWaiters(host, Name(host->key) + ": a later DROP", out);
    WaitFor(host, op_id);
    return "";
  }
  host->drop |= drop;
  WaitFor(host, op_id);
  if (host->state == HostState::kReady) SetState(host, HostState::kDraining, out);
  if (host->calls == 0) settled_.push_back(host);
  return "";
}

void ExpertCore::On(expert_event::LoadDone& e, Actions* out) {
  Host* host = FindHost(e.key);
  CHECK_MSG(host != nullptr && host->state == HostState::kLoading,
            "LoadDone of " + Name(e.key) + " that is not loading");
  --loads_pending_;
  const auto took = static_cast<double>(now_ - host->load_started);
  load_us_ = load_us_ == 0 ? took : 0.8 * load_us_ + 0.2 * took;
  if (!e.status.ok()) {
    loaded_bytes_ -= host->bytes;
    SetState(host, HostState::kAbsent, out);
    const bool dropped = std::exchange(host->drop, false);
    FinishWaiters(host, dropped ? "" : Name(host->key) + ": " + ToString(e.status), out);
    return;
  }
  host->handle = e.handle;
  SetState(host, HostState::kVerified, out);
  if (host->drop) {
    Unload(host, out);
    FinishWaiters(host, "", out);
    return;
  }
  SetState(host, HostState::kReady, out);
  FinishWaiters(host, "", out);
}

void ExpertCore::Unload(Host* host, Actions* out) {
  out->emplace_back(expert_action::Drop{host->handle});
  loaded_bytes_ -= host->bytes;
  host->handle = 0;
  host->drop = false;
  SetState(host, HostState::kAbsent, out);
}

void ExpertCore::Settle(Actions* out) {
  while (!settled_.empty()) {
    Host* host = settled_.back();
    settled_.pop_back();
    if (host->state != HostState::kDraining || host->calls != 0)
      continue;  // settled twice, or a LOAD came between
    if (host->drop) Unload(host, out);
    FinishWaiters(host, "", out);
  }
  if (idle()) {
    for (const uint64_t op_id : std::exchange(drain_ops_, {})) OpStep(op_id, "", out);
  }
}

void ExpertCore::DrainShard(uint64_t op_id, Actions* out) {
  ++ops_.at(op_id).remaining;
  drain_ops_.push_back(op_id);
  if (std::exchange(draining_, true)) return;
  for (const auto& [conn, stream] : streams_)
    Send(stream.get(), frame::EncodeBare(frame::Kind::kDrain, pool_), out);
}

void ExpertCore::WaitFor(Host* host, uint64_t op_id) {
  ++ops_.at(op_id).remaining;
  host->waiters.push_back(op_id);
}

void ExpertCore::FinishWaiters(Host* host, std::string_view error, Actions* out) {
  for (const uint64_t op_id : std::exchange(host->waiters, {})) OpStep(op_id, error, out);
}

// One part of an operation is done. The first error stays.
void ExpertCore::OpStep(uint64_t op_id, std::string_view error, Actions* out) {
  Op& op = ops_.at(op_id);
  if (!error.empty() && op.ok) {
    op.ok = false;
    op.text = error;
  }
  if (--op.remaining > 0) return;
  op.done = true;
  out->emplace_back(expert_action::OpDone{op_id, op.ok, op.text});
  finished_ops_.push_back(op_id);
  if (finished_ops_.size() <= kFinishedOpsMax) return;
  ops_.erase(finished_ops_.front());
  finished_ops_.erase(finished_ops_.begin());
}

}  // namespace consilium
