// Placement: from what is there to what should be, and who is told. Membership is in controller_core.cc.
#include <algorithm>

#include "common/base/status.h"
#include "common/placement/planner.h"
#include "services/controller/controller_core.h"

namespace consilium {
namespace {

constexpr size_t kOpExpertsMax = 64;  // experts in one op: small enough that progress shows
constexpr size_t kHistoryMax = 16;    // epochs that a delta can start from
constexpr MonoTime kMs = 1000;

}  // namespace

void ControllerCore::Advance(Actions* out) {
  if (!settled_) {
    if (!MaySettle()) return;
    settled_ = replan_ = true;
    known_.clear();
    Persist(out);
  }
  LiftRetries();
  if (replan_) Replan(out);
  for (auto& [name, slot] : shards_) {
    if (slot.peer == 0) continue;
    ResendOps(&slot, out);
    // Both walk over all experts, so only when something changed or an ack time ran out.
    const bool late = std::any_of(slot.retire_by.begin(), slot.retire_by.end(),
                                  [&](const auto& entry) { return entry.second <= now_; });
    if (work_ || late) {
      Retire(&slot, out);
      SendLoads(&slot, out);
    }
  }
  work_ = false;
  if (dirty_ && (view_->epoch.value == 0 || now_ >= published_at_ + options_.publish_ms * kMs)) Publish(out);
  for (auto& [name, router] : routers_) UpdateRouter(&router, out);
  UpdateGateways(out);
}

MonoTime ControllerCore::SettleDeadline() const {
  const uint32_t wait =
      known_.empty() ? options_.settle_ms : std::max(options_.settle_ms, options_.rehost_grace_ms);
  return first_shard_at_ + wait * kMs;
}

bool ControllerCore::MaySettle() const {
  const auto attached = static_cast<uint32_t>(std::count_if(
      shards_.begin(), shards_.end(), [](const auto& entry) { return entry.second.peer != 0; }));
  if (attached == 0) return false;
  if (known_.empty() && options_.expected_shards > 0 && attached >= options_.expected_shards) return true;
  const bool quiet = now_ >= last_join_at_ + options_.quiet_ms * kMs;
  if (known_.empty() && !options_.known_members.empty() && options_.expected_shards == 0) return quiet;
  const MonoTime deadline = SettleDeadline();
  return now_ >= deadline && (quiet || now_ >= deadline + options_.settle_ms * kMs);
}

MonoTime ControllerCore::next_deadline() const {
  MonoTime next = kNever;
  const auto at = [&next](MonoTime t) { next = std::min(next, t); };
  for (const auto& [name, slot] : shards_) at(slot.until);
  for (const auto& [name, router] : routers_) at(router.until);
  if (!settled_) {
    if (first_shard_at_ == kNever) return next;
    for (const MonoTime t : {last_join_at_ + options_.quiet_ms * kMs, SettleDeadline(),
                             SettleDeadline() + options_.settle_ms * kMs}) {
      if (t > now_) at(t);
    }
    return next;
  }
  if (dirty_) at(published_at_ + options_.publish_ms * kMs);
  for (const auto& [name, slot] : shards_) {
    for (const auto& [id, op] : slot.ops) at(op.deadline);
    for (const auto& [ix, t] : slot.retire_by) at(t);
    for (const auto& [ix, retry] : slot.retries) at(retry.at);
  }
  for (const auto& [name, router] : routers_) {
    if (router.sent > router.acked || router.acked < view_->epoch) at(router.resend_at);
  }
  return next;
}

// Experts whose waiting time after a failure is over may be tried again.
void ControllerCore::LiftRetries() {
  for (auto& [name, slot] : shards_) {
    for (auto& [ix, retry] : slot.retries) {
      if (retry.at > now_) continue;
      retry.at = kNever;
      replan_ = true;
    }
  }
}

const ControllerCore::ShardSlot* ControllerCore::FindById(ShardId id) const {
  for (const auto& [name, slot] : shards_) {
    if (slot.id == id) return &slot;
  }
  return nullptr;
}

double ControllerCore::LoadOf(size_t ix) const {
  double sum = 0;
  for (const auto& [name, router] : routers_) {
    const auto load = router.loads.find(ix);
    if (load != router.loads.end()) sum += load->second;
  }
  return sum;
}

bool ControllerCore::Wanted(size_t ix, ShardId id) const {
  return std::find(wanted_[ix].begin(), wanted_[ix].end(), id) != wanted_[ix].end();
}

// What was wanted before counts as there: a shard in grace keeps its place until the grace is over, and one
// that came back gets the experts it had.
void ControllerCore::Replan(Actions* out) {
  replan_ = false;
  work_ = true;
  ++replans_;
  std::vector<PlanShard> shards;
  for (const auto& [name, slot] : shards_) shards.push_back({slot.id, name, slot.capacity_bytes, 1, ""});
  std::vector<PlanExpert> experts(index_.size());
  for (size_t ix = 0; ix < index_.size(); ++ix) {
    PlanExpert& expert = experts[ix];
    expert.layer = index_.key(ix).layer;
    expert.expert = index_.key(ix).expert;
    expert.bytes = index_.bytes(ix);
    expert.load = LoadOf(ix);
    for (const auto& [name, slot] : shards_) {
      const bool wanted = Wanted(ix, slot.id);
      const Copy copy = slot.copies[ix];
      const auto retry = slot.retries.find(ix);
      const bool barred = retry != slot.retries.end() && retry->second.at != kNever;
      if (copy == Copy::kReady || copy == Copy::kComing || (wanted && !barred)) {
        expert.copies.push_back({slot.id, copy == Copy::kReady, wanted});
      }
      if (barred) expert.barred.push_back(slot.id);
    }
  }
  Plan plan = MakePlan(shards, experts, {.replicas = options_.replicas});
  wanted_ = std::move(plan.shards);
  std::string problem = plan.fit.ok() ? "" : Message(plan.fit);
  if (problem.empty() && plan.short_copies > 0) {
    problem = std::to_string(plan.short_copies) + " further copies found no room (--replicas " +
              std::to_string(options_.replicas) + ")";
  }
  size_t missing = 0;
  for (const auto& [name, slot] : shards_) {
    for (size_t ix = 0; ix < index_.size() && slot.peer != 0; ++ix) {
      missing += slot.copies[ix] == Copy::kAbsent && Wanted(ix, slot.id) ? 1 : 0;
    }
  }
  if (missing > 0 || plan.surplus > 0) {
    out->push_back(controller_action::Note{false, "plan: " + std::to_string(index_.size()) + " experts on " +
                                                      std::to_string(shards.size()) + " shards, " +
                                                      std::to_string(missing) + " copies to load, " +
                                                      std::to_string(plan.surplus) + " to drop"});
  }
  if (problem != problem_ && !problem.empty()) out->push_back(controller_action::Note{true, problem});
  problem_ = std::move(problem);
}

void ControllerCore::SendLoads(ShardSlot* slot, Actions* out) {
  uint64_t used = 0;
  std::vector<size_t> missing;
  for (size_t ix = 0; ix < index_.size(); ++ix) {
    if (slot->copies[ix] != Copy::kAbsent) {
      used += index_.bytes(ix);
    } else if (Wanted(ix, slot->id) && !slot->pending.contains(ix)) {
      const auto retry = slot->retries.find(ix);
      if (retry == slot->retries.end() || retry->second.at == kNever) missing.push_back(ix);
    }
  }
  if (missing.empty()) return;
  std::vector<double> load(index_.size());
  for (const size_t ix : missing) load[ix] = LoadOf(ix);
  std::stable_sort(missing.begin(), missing.end(), [&](size_t a, size_t b) { return load[a] > load[b]; });
  std::vector<size_t> batch;
  for (const size_t ix : missing) {
    // No room yet: a drop on this shard will make it.
    if (slot->capacity_bytes != 0 && used + index_.bytes(ix) > slot->capacity_bytes) continue;
    used += index_.bytes(ix);
    slot->copies[ix] = Copy::kComing;
    batch.push_back(ix);
    ++moves_;
    if (batch.size() == kOpExpertsMax)
      SendOp(slot, control::CommandKind::kLoad, std::exchange(batch, {}), out);
  }
  if (!batch.empty()) SendOp(slot, control::CommandKind::kLoad, std::move(batch), out);
}

// The copy may leave the view: it is not wanted, and all wanted copies are ready (so never the last one).
bool ControllerCore::MayGo(size_t ix, ShardId id) const {
  PlanExpert expert;
  for (const ShardId wanted : wanted_[ix]) {
    const ShardSlot* slot = FindById(wanted);
    if (slot != nullptr && slot->peer != 0) {
      expert.copies.push_back({wanted, slot->copies[ix] == Copy::kReady, true});
    }
  }
  return MayDrop(expert, wanted_[ix], id);
}

void ControllerCore::Retire(ShardSlot* slot, Actions* out) {
  std::vector<size_t> drop;
  for (size_t ix = 0; ix < index_.size(); ++ix) {
    const auto retiring = slot->retiring.find(ix);
    const bool go = slot->copies[ix] == Copy::kReady && !Wanted(ix, slot->id) && MayGo(ix, slot->id);
    if (retiring == slot->retiring.end()) {
      const auto retry = slot->retries.find(ix);
      const bool waits = retry != slot->retries.end() && retry->second.at != kNever;
      if (!go || waits) continue;
      slot->retiring[ix] = Epoch{};
      dirty_ = true;
      continue;
    }
    if (!go) {  // wanted again, or a wanted copy was lost meanwhile
      slot->retiring.erase(retiring);
      slot->retire_by.erase(ix);
      dirty_ = true;
      continue;
    }
    if (retiring->second.value == 0) continue;  // not published yet
    if (!AckedByAll(retiring->second) && slot->retire_by.at(ix) > now_) continue;
    slot->retiring.erase(retiring);
    slot->retire_by.erase(ix);
    slot->copies[ix] = Copy::kLeaving;
    drop.push_back(ix);
  }
  for (size_t first = 0; first < drop.size(); first += kOpExpertsMax) {
    const size_t end = std::min(first + kOpExpertsMax, drop.size());
    SendOp(slot, control::CommandKind::kDrop,
           std::vector<size_t>(drop.begin() + static_cast<std::ptrdiff_t>(first),
                               drop.begin() + static_cast<std::ptrdiff_t>(end)),
           out);
  }
}

bool ControllerCore::AckedByAll(Epoch epoch) const {
  return std::all_of(routers_.begin(), routers_.end(),
                     [&](const auto& entry) { return entry.second.acked >= epoch; });
}

void ControllerCore::SendOp(ShardSlot* slot, control::CommandKind kind, std::vector<size_t> experts,
                            Actions* out) {
  const uint64_t id = (uint64_t{term_} << 32) | next_op_++;
  for (const size_t ix : experts) slot->pending[ix] = id;
  const Op& op = slot->ops[id] = Op{kind, std::move(experts), now_ + options_.op_timeout_ms * kMs};
  SendCommand(*slot, id, op, out);
}

void ControllerCore::SendCommand(const ShardSlot& slot, uint64_t op_id, const Op& op, Actions* out) const {
  control::ShardCommand command;
  command.shard_id = slot.id;
  command.epoch = view_->epoch;
  command.op_id = op_id;
  command.kind = op.kind;
  for (const size_t ix : op.experts) command.experts.push_back(index_.key(ix));
  command.lease_ms = options_.lease_ms;
  out->push_back(controller_action::ToShard{slot.peer, std::move(command)});
}

void ControllerCore::ResendOps(ShardSlot* slot, Actions* out) {
  for (auto& [id, op] : slot->ops) {
    if (op.deadline > now_) continue;
    op.deadline = now_ + options_.op_timeout_ms * kMs;
    out->push_back(controller_action::Note{true, "shard " + slot->who.name + " made no progress with op " +
                                                     std::to_string(id) + ": sent again"});
    SendCommand(*slot, id, op, out);
  }
}

std::shared_ptr<const PublishedView> ControllerCore::CurrentView() const {
  auto view = std::make_shared<PublishedView>();
  view->replicas.resize(index_.size());
  for (const auto& [name, slot] : shards_) {
    if (slot.peer == 0) continue;
    view->shards[slot.id] = {slot.id, name, slot.who.address, slot.who.incarnation};
    for (size_t ix = 0; ix < index_.size(); ++ix) {
      if (slot.copies[ix] == Copy::kReady && !slot.retiring.contains(ix))
        view->replicas[ix].push_back(slot.id);
    }
  }
  for (std::vector<ShardId>& ids : view->replicas) std::sort(ids.begin(), ids.end());
  return view;
}

void ControllerCore::Publish(Actions*) {
  dirty_ = false;
  auto view = std::make_shared<PublishedView>(*CurrentView());
  const bool first = view_->epoch.value == 0;
  if (first || view_->epoch.term() != term_ || !view_->SameContent(*view)) {
    view->epoch = Epoch::Make(term_, ++sequence_);
    view_ = view;
    history_.push_back(view_);
    if (history_.size() > kHistoryMax) history_.pop_front();
    published_at_ = now_;
  }
  bool retired = false;
  for (auto& [name, slot] : shards_) {
    for (auto& [ix, epoch] : slot.retiring) {
      if (epoch.value != 0) continue;
      epoch = view_->epoch;
      slot.retire_by[ix] = now_ + options_.ack_timeout_ms * kMs;
      retired = true;
    }
  }
  work_ |= retired && routers_.empty();
}

// One update at a time: the next goes out when this one was acked, so a slow router bounds itself.
void ControllerCore::UpdateRouter(RouterSlot* router, Actions* out) {
  if (view_->epoch.value == 0 || router->acked >= view_->epoch) return;
  const bool outstanding = router->sent > router->acked;
  if (outstanding && now_ < router->resend_at) return;
  const PublishedView* base = nullptr;
  if (!outstanding) {
    for (const auto& old : history_) {
      if (old->epoch == router->acked) base = old.get();
    }
  }
  control::PlacementUpdate update = MakeUpdate(index_, base, *view_);
  update.lease_ms = options_.lease_ms;
  out->push_back(controller_action::ToRouter{router->peer, std::move(update)});
  router->sent = view_->epoch;
  given_[router->who.name] = {router->who.incarnation, view_->epoch};
  router->resend_at = now_ + options_.ack_timeout_ms * kMs;
}

void ControllerCore::UpdateGateways(Actions* out) {
  if (gateways_.empty()) return;
  control::ClusterView cluster;
  for (const auto& [name, router] : routers_) {
    const control::MemberIdentity& who = router.who;
    cluster.workers.push_back({name, who.address, who.model_id, who.manifest, who.class_name, who.fingerprint,
                               router.ready, router.draining});
  }
  cluster.covered = covered();
  for (const auto& [peer, gateway] : gateways_) {
    const auto known = told_.find(peer);
    if (known != told_.end() && known->second == cluster) continue;
    told_[peer] = cluster;
    out->push_back(controller_action::ToGateway{peer, cluster});
  }
}

control::PlacementUpdate ControllerCore::Placement() const { return MakeUpdate(index_, nullptr, *view_); }

std::vector<control::ExpertKey> ControllerCore::Uncovered() const {
  std::vector<control::ExpertKey> keys;
  for (size_t ix = 0; ix < view_->replicas.size(); ++ix) {
    if (view_->replicas[ix].empty()) keys.push_back(index_.key(ix));
  }
  return keys;
}

std::vector<ControllerMember> ControllerCore::Members() const {
  std::vector<ControllerMember> members;
  for (const auto& [name, slot] : shards_) {
    bool complete = settled_;
    for (size_t ix = 0; ix < index_.size() && complete; ++ix) {
      complete = !Wanted(ix, slot.id) || slot.copies[ix] == Copy::kReady;
    }
    members.push_back({"expert", name, slot.who.address,
                       slot.peer == 0 ? "gone"
                       : complete     ? "ready"
                                      : "loading"});
  }
  for (const auto& [name, router] : routers_) {
    members.push_back({"attention", name, router.who.address,
                       router.draining ? "draining"
                       : router.ready  ? "ready"
                                       : "starting"});
  }
  for (const auto& [peer, gateway] : gateways_) members.push_back({"gateway", gateway.name, "", "attached"});
  return members;
}

ControllerStats ControllerCore::stats() const {
  ControllerStats stats;
  for (const auto& [name, slot] : shards_) {
    stats.shards += slot.peer != 0 ? 1 : 0;
    stats.ops_outstanding += slot.ops.size();
  }
  stats.routers = static_cast<uint32_t>(routers_.size());
  stats.gateways = static_cast<uint32_t>(gateways_.size());
  stats.uncovered = view_->uncovered();
  stats.covered = view_->replicas.size() - stats.uncovered;
  stats.moves = moves_;
  stats.replans = replans_;
  stats.refused = refused_;
  return stats;
}

}  // namespace consilium
