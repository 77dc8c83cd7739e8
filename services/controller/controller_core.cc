// Membership. Placement is in controller_plan.cc.
#include "services/controller/controller_core.h"

#include <algorithm>

#include "common/base/hash.h"

namespace consilium {
namespace {

constexpr uint32_t kIdsPerTerm = 1000;    // shard ids are term * 1000 + n: unique over terms, and readable
constexpr size_t kSupersededMax = 64;     // remembered processes that lost their name
constexpr size_t kExpertsMax = 1u << 20;  // of a model
constexpr size_t kGivenMax = 1024;        // remembered routers
constexpr MonoTime kMs = 1000;

std::string Short(const std::string& manifest) {
  return Hex({reinterpret_cast<const uint8_t*>(manifest.data()), std::min<size_t>(manifest.size(), 6)});
}

std::string Process(const std::string& role, const std::string& name, uint64_t incarnation) {
  return role + " " + name + " " + std::to_string(incarnation);
}

}  // namespace

ControllerCore::ControllerCore(ControllerOptions options)
    : options_(std::move(options)),
      term_(options_.term),
      known_(options_.known_members.begin(), options_.known_members.end()),
      persisted_(options_.known_members),
      view_(std::make_shared<PublishedView>()) {}

void ControllerCore::Handle(MonoTime now, const ControllerEvent& event, Actions* out) {
  now_ = now;
  std::visit([&](const auto& e) { On(e, out); }, event);
  Advance(out);
}

void ControllerCore::On(const controller_event::Tick&, Actions* out) { ExpireLeases(out); }

void ControllerCore::ClosePeer(PeerId peer, Actions* out) {
  closing_.insert(peer);
  out->push_back(controller_action::Close{peer});
}

void ControllerCore::On(const controller_event::Shard& event, Actions* out) {
  if (closing_.contains(event.peer)) return;
  const auto peer = peers_.find(event.peer);
  if (peer == peers_.end()) {
    AttachShard(event.peer, event.report, out);
    return;
  }
  const auto slot = shards_.find(peer->second.second);
  if (slot == shards_.end() || slot->second.peer != event.peer) return;
  slot->second.until = now_ + options_.lease_ms * kMs;
  ApplyStates(&slot->second, event.report);
  ApplyResults(&slot->second, event.report, out);
}

void ControllerCore::AttachShard(PeerId peer, const control::ShardReport& report, Actions* out) {
  std::string why = Admit("shard", report.who);
  if (why.empty())
    why = report.full ? AdmitLayers(report.layers) : "the first report of a stream must be full";
  if (!why.empty()) {
    Refuse(peer, "shard", report.who, why, out);
    out->push_back(controller_action::ToShard{peer, {.lease_ms = options_.lease_ms, .refused = why}});
    ClosePeer(peer, out);
    return;
  }
  LearnModel(report.who);
  if (index_.size() == 0) {
    index_ = ExpertIndex(report.layers);
    wanted_.assign(index_.size(), {});
    auto empty = std::make_shared<PublishedView>();
    empty->epoch = view_->epoch;
    empty->replicas.resize(index_.size());
    view_ = std::move(empty);
    history_.clear();
  }
  const std::string& name = report.who.name;
  const auto old = shards_.find(name);
  const bool same_process = old != shards_.end() && old->second.who.incarnation == report.who.incarnation;
  ShardId id, old_id;
  if (old != shards_.end()) {
    old_id = old->second.id;
    if (old->second.peer != 0) {
      if (!same_process) {
        out->push_back(controller_action::ToShard{
            old->second.peer,
            {.refused = "the name " + name + " was taken by a newer process at " + report.who.address}});
      }
      ClosePeer(old->second.peer, out);
      peers_.erase(old->second.peer);
    }
    if (!same_process) Supersede("shard", name, old->second.who.incarnation);
  }
  id = same_process ? old_id : GiveShardId(report.last_shard_id, out);
  if (old != shards_.end() && !same_process) RenameWanted(old_id, id);
  ShardSlot slot;
  slot.who = report.who;
  slot.id = id;
  slot.peer = peer;
  slot.until = now_ + options_.lease_ms * kMs;
  slot.copies.assign(index_.size(), Copy::kAbsent);
  shards_[name] = std::move(slot);
  peers_[peer] = {true, name};
  ApplyStates(&shards_[name], report);
  out->push_back(controller_action::ToShard{
      peer, {.shard_id = id, .epoch = view_->epoch, .lease_ms = options_.lease_ms}});
  if (first_shard_at_ == kNever) first_shard_at_ = now_;
  replan_ = true;
  Joined("shard", name, out);
}

void ControllerCore::On(const controller_event::Router& event, Actions* out) {
  const control::RouterReport& report = event.report;
  if (closing_.contains(event.peer)) return;
  if (!peers_.contains(event.peer)) AttachRouter(event.peer, report, out);
  const auto peer = peers_.find(event.peer);
  if (peer == peers_.end()) return;
  const auto found = routers_.find(peer->second.second);
  if (found == routers_.end() || found->second.peer != event.peer) return;
  RouterSlot& router = found->second;
  router.until = now_ + options_.lease_ms * kMs;
  if (report.acked_epoch > router.acked) work_ = true;
  router.acked = report.acked_epoch;
  router.ready = report.ready;
  router.draining = report.draining;
  for (const control::ExpertLoad& load : report.loads) {
    const size_t ix = index_.Find(load.layer, load.expert);
    if (ix < index_.size() && load.rows_per_s >= 0) router.loads[ix] = load.rows_per_s;
  }
  // An epoch of this term or later that this controller did not give it: the stored term was lost. Ours must
  // be above it to be taken, and must not name another placement by the same number.
  const auto given = given_.find(report.who.name);
  const bool ours = given != given_.end() && given->second.first == report.who.incarnation &&
                    router.acked <= given->second.second;
  if (router.acked.term() >= term_ && !ours) {
    RaiseTerm(router.acked.term(), out);
  }
}

void ControllerCore::AttachRouter(PeerId peer, const control::RouterReport& report, Actions* out) {
  const std::string& name = report.who.name;
  const std::string why = Admit("router", report.who);
  if (!why.empty()) {
    Refuse(peer, "router", report.who, why, out);
    out->push_back(controller_action::ToRouter{peer, {.lease_ms = options_.lease_ms, .refused = why}});
    ClosePeer(peer, out);
    return;
  }
  LearnModel(report.who);
  if (const auto old = routers_.find(name); old != routers_.end()) {
    if (old->second.who.incarnation != report.who.incarnation) {
      Supersede("router", name, old->second.who.incarnation);
      out->push_back(controller_action::ToRouter{
          old->second.peer,
          {.refused = "the name " + name + " was taken by a newer process at " + report.who.address}});
    }
    ClosePeer(old->second.peer, out);
    peers_.erase(old->second.peer);
  }
  RouterSlot slot;
  slot.who = report.who;
  slot.peer = peer;
  routers_[name] = std::move(slot);
  peers_[peer] = {false, name};
  out->push_back(
      controller_action::ToRouter{peer, {.lease_ms = options_.lease_ms}});  // no epoch: only a welcome
  Joined("router", name, out);
}

void ControllerCore::On(const controller_event::Gateway& event, Actions* out) {
  const bool joined = gateways_.insert_or_assign(event.peer, event.report).second;
  if (joined) out->push_back(controller_action::Note{false, "gateway " + event.report.name + " joined"});
}

void ControllerCore::On(const controller_event::Closed& event, Actions* out) {
  closing_.erase(event.peer);
  if (const auto gateway = gateways_.find(event.peer); gateway != gateways_.end()) {
    out->push_back(controller_action::Note{false, "gateway " + gateway->second.name + " left"});
    gateways_.erase(gateway);
    told_.erase(event.peer);
  }
  const auto peer = peers_.find(event.peer);
  if (peer == peers_.end()) return;
  const auto [is_shard, name] = peer->second;
  if (is_shard) {
    LoseShard(&shards_.at(name), "its stream broke", out);
  } else {
    LoseRouter(name, "its stream broke", out);
  }
  ForgetModelIfAlone(out);
}

void ControllerCore::ExpireLeases(Actions* out) {
  std::vector<std::string> lost_routers, over;
  for (auto& [name, slot] : shards_) {
    if (slot.until > now_) continue;
    if (slot.peer == 0) {
      over.push_back(name);
      continue;
    }
    ClosePeer(slot.peer, out);
    LoseShard(&slot, "no report within its lease", out);
  }
  for (const auto& [name, slot] : routers_) {
    if (slot.until <= now_) lost_routers.push_back(name);
  }
  for (const std::string& name : lost_routers) {
    ClosePeer(routers_.at(name).peer, out);
    LoseRouter(name, "no report within its lease", out);
  }
  for (const std::string& name : over) {
    out->push_back(
        controller_action::Note{true, "shard " + name + " did not come back: its experts go to the others"});
    shards_.erase(name);
    replan_ = true;
    Persist(out);
  }
  ForgetModelIfAlone(out);
}

std::string ControllerCore::Admit(const std::string& role, const control::MemberIdentity& who) const {
  if (who.name.empty()) return "a " + role + " needs a name";
  if (who.address.empty()) return role + " " + who.name + " gave no address";
  if (who.manifest.size() != 32) {
    return role + " " + who.name + ": manifest digest of 32 bytes expected, got " +
           std::to_string(who.manifest.size());
  }
  if (std::find(superseded_.begin(), superseded_.end(), Process(role, who.name, who.incarnation)) !=
      superseded_.end()) {
    return "the name " + who.name + " was taken by a newer process; give each " + role + " a name of its own";
  }
  if (!model_) return "";
  if (who.manifest != model_->manifest) {
    return role + " " + who.name + " has model " + who.model_id + " (manifest " + Short(who.manifest) +
           "), this cluster serves " + model_->model_id + " (manifest " + Short(model_->manifest) + ")";
  }
  if (who.class_name != model_->class_name) {
    return role + " " + who.name + " computes in class " + who.class_name + ", this cluster in " +
           model_->class_name;
  }
  if (who.fingerprint != model_->fingerprint) {
    return role + " " + who.name + " has fingerprint " + std::to_string(who.fingerprint) + " of class " +
           who.class_name + ", this cluster " + std::to_string(model_->fingerprint) +
           ": its arithmetic gives other bits";
  }
  return "";
}

std::string ControllerCore::AdmitLayers(const std::vector<control::MoeLayer>& layers) const {
  if (index_.size() > 0) {
    return ExpertIndex(layers).layers() == index_.layers()
               ? ""
               : "same manifest, but other MoE layers than this cluster";
  }
  uint64_t total = 0;
  std::set<LayerId> seen;
  for (const control::MoeLayer& layer : layers) {
    if (!seen.insert(layer.layer).second)
      return "MoE layer " + std::to_string(layer.layer.value) + " is named twice";
    if (layer.experts == 0 || layer.experts > 65535) {
      return "MoE layer " + std::to_string(layer.layer.value) + ": 1 to 65535 experts expected, got " +
             std::to_string(layer.experts);
    }
    total += layer.experts;
  }
  if (total == 0) return "the report names no MoE layers";
  if (total > kExpertsMax) {
    return "at most " + std::to_string(kExpertsMax) + " experts expected, got " + std::to_string(total);
  }
  return "";
}

void ControllerCore::Refuse(PeerId, const std::string& role, const control::MemberIdentity& who,
                            const std::string& why, Actions* out) {
  ++refused_;
  out->push_back(
      controller_action::Note{true, "refused " + role + " " + who.name + " at " + who.address + ": " + why});
}

void ControllerCore::LearnModel(const control::MemberIdentity& who) {
  if (!model_) model_ = who;
}

// The last shard and router are gone for good: the next member may bring another model.
void ControllerCore::ForgetModelIfAlone(Actions* out) {
  if (!model_ || !shards_.empty() || !routers_.empty()) return;
  model_.reset();
  index_ = ExpertIndex();
  wanted_.clear();
  auto empty = std::make_shared<PublishedView>();
  empty->epoch = view_->epoch;
  view_ = std::move(empty);
  history_.clear();
  settled_ = false;
  first_shard_at_ = kNever;
  known_.clear();
  UpdateGateways(out);
}

void ControllerCore::RaiseTerm(uint32_t above, Actions* out) {
  term_ = above + 1;
  next_shard_ = 1;
  dirty_ = true;
  Persist(out);
}

ShardId ControllerCore::GiveShardId(uint32_t last, Actions* out) {
  if (last != 0) {
    if (last / kIdsPerTerm >= term_ && FindById(ShardId{last}) == nullptr) RaiseTerm(last / kIdsPerTerm, out);
    if (FindById(ShardId{last}) == nullptr) return ShardId{last};
  }
  if (next_shard_ == kIdsPerTerm) RaiseTerm(term_, out);
  return ShardId{term_ * kIdsPerTerm + next_shard_++};
}

void ControllerCore::Supersede(const std::string& role, const std::string& name, uint64_t incarnation) {
  superseded_.push_back(Process(role, name, incarnation));
  if (superseded_.size() > kSupersededMax) superseded_.pop_front();
}

void ControllerCore::RenameWanted(ShardId from, ShardId to) {
  for (std::vector<ShardId>& ids : wanted_) {
    const auto at = std::find(ids.begin(), ids.end(), from);
    if (at == ids.end()) continue;
    *at = to;
    std::sort(ids.begin(), ids.end());
  }
}

void ControllerCore::LoseShard(ShardSlot* slot, const std::string& why, Actions* out) {
  out->push_back(controller_action::Note{true, "shard " + slot->who.name + " is gone: " + why});
  peers_.erase(slot->peer);
  slot->peer = 0;
  slot->until = now_ + options_.rehost_grace_ms * kMs;
  slot->copies.assign(index_.size(), Copy::kAbsent);
  slot->ops.clear();
  slot->pending.clear();
  slot->retiring.clear();
  slot->retire_by.clear();
  work_ = dirty_ = true;
}

void ControllerCore::LoseRouter(const std::string& name, const std::string& why, Actions* out) {
  const auto router = routers_.find(name);
  if (router == routers_.end()) return;
  out->push_back(controller_action::Note{true, "router " + name + " is gone: " + why});
  peers_.erase(router->second.peer);
  routers_.erase(router);
  if (given_.size() > kGivenMax) given_.erase(given_.begin());  // costs a new term at most
  work_ = true;
  if (settled_) Persist(out);
}

void ControllerCore::ApplyStates(ShardSlot* slot, const control::ShardReport& report) {
  if (report.capacity_bytes != slot->capacity_bytes) {
    slot->capacity_bytes = report.capacity_bytes;
    replan_ = true;
  }
  for (const control::HostedExpert& hosted : report.experts) {
    const size_t ix = index_.Find(hosted.layer, hosted.expert);
    if (ix == index_.size()) continue;
    Copy state = Copy::kAbsent;
    switch (hosted.state) {
      case control::HostedState::kAbsent:
        break;
      case control::HostedState::kLoading:
      case control::HostedState::kVerified:
        state = Copy::kComing;
        break;
      case control::HostedState::kReady:
        state = Copy::kReady;
        break;
      case control::HostedState::kDraining:
        state = Copy::kLeaving;
        break;
    }
    const auto pending = slot->pending.find(ix);
    const Op* op = pending == slot->pending.end() ? nullptr : &slot->ops.at(pending->second);
    if (op != nullptr && op->kind == control::CommandKind::kDrop && state == Copy::kReady) {
      state = Copy::kLeaving;  // reported before the DROP arrived: it is out of the view and stays out
    }
    if (state == Copy::kReady) slot->retries.erase(ix);
    slot->copies[ix] = state;
    if (pending != slot->pending.end()) {  // progress
      slot->ops.at(pending->second).deadline = now_ + options_.op_timeout_ms * kMs;
    }
  }
  if (!report.experts.empty()) work_ = dirty_ = true;
}

void ControllerCore::ApplyResults(ShardSlot* slot, const control::ShardReport& report, Actions* out) {
  for (const control::OpResult& result : report.results) {
    const auto found = slot->ops.find(result.op_id);
    if (found == slot->ops.end()) continue;  // answered twice, or of an earlier stream
    const Op op = std::move(found->second);
    slot->ops.erase(found);
    const bool load = op.kind == control::CommandKind::kLoad;
    size_t failed = 0;
    for (const size_t ix : op.experts) {
      slot->pending.erase(ix);
      if (!load && result.ok) slot->copies[ix] = Copy::kAbsent;
      if (!load && !result.ok && slot->copies[ix] == Copy::kLeaving) slot->copies[ix] = Copy::kReady;
      if (slot->copies[ix] == (load ? Copy::kReady : Copy::kAbsent)) continue;
      FailExpert(slot, ix);
      ++failed;
    }
    work_ = dirty_ = true;
    if (failed == 0) continue;
    out->push_back(controller_action::Note{
        true, "shard " + slot->who.name + (load ? " failed to load " : " failed to drop ") +
                  std::to_string(failed) + " experts (op " + std::to_string(result.op_id) + "): " +
                  (result.text.empty() ? std::string("it says done, but its states differ") : result.text)});
  }
}

void ControllerCore::FailExpert(ShardSlot* slot, size_t ix) {
  if (slot->copies[ix] == Copy::kComing) slot->copies[ix] = Copy::kAbsent;
  Retry& retry = slot->retries[ix];
  retry.at = now_ + (MonoTime{options_.retry_ms} << std::min(retry.failures, 6u)) * kMs;
  ++retry.failures;
  replan_ = true;
}

void ControllerCore::Joined(const std::string& role, const std::string& name, Actions* out) {
  last_join_at_ = now_;
  known_.erase(role + " " + name);
  work_ = dirty_ = true;
  out->push_back(controller_action::Note{false, role + " " + name + " joined"});
  Persist(out);
}

void ControllerCore::Persist(Actions* out) {
  std::set<std::string> members = known_;
  for (const auto& [name, slot] : shards_) members.insert("shard " + name);
  for (const auto& [name, slot] : routers_) members.insert("router " + name);
  std::vector<std::string> sorted(members.begin(), members.end());
  if (sorted == persisted_ && term_ == options_.term) return;
  options_.term = term_;
  persisted_ = sorted;
  out->push_back(controller_action::Persist{term_, std::move(sorted)});
}

}  // namespace consilium
