#include "services/controller/testing_world.h"

#include <algorithm>

namespace consilium {

using control::HostedState;

World::World(ControllerOptions options, uint64_t seed) : options_(std::move(options)), random_(seed) {
  StartController();
}

MonoTime World::Delay() { return 1000 * static_cast<MonoTime>(1 + random_() % delay_ms); }

void World::At(MonoTime t, std::function<void()> f) { events_.push({t, order_++, std::move(f)}); }

void World::Violation(const std::string& text) {
  if (violations_.size() < 5) violations_.push_back("at " + std::to_string(now_ / 1000) + " ms: " + text);
}

control::MemberIdentity World::Who(const std::string& name) {
  const uint64_t incarnation = next_incarnation_++;
  return {.name = name,
          .incarnation = incarnation,
          .address = "host:" + std::to_string(incarnation),
          .admin = "",
          .model_id = "tiny",
          .manifest = manifest,
          .class_name = "hash",
          .fingerprint = 7};
}

World::Shard& World::AddShard(const std::string& name, uint64_t capacity) {
  Shard& shard = shards_[name];
  shard = Shard();
  shard.who = Who(name);
  shard.capacity = capacity;
  return shard;
}

World::Router& World::AddRouter(const std::string& name) {
  Router& router = routers_[name];
  router = Router();
  router.who = Who(name);
  return router;
}

World::Gateway& World::AddGateway(const std::string& name) { return gateways_[name]; }

void World::Break(PeerId peer) {
  const auto stream = streams_.find(peer);
  if (stream == streams_.end()) return;
  const auto [role, name] = stream->second;
  if (role == 's' && shards_[name].peer == peer) shards_[name].peer = 0;
  if (role == 'r' && routers_[name].peer == peer) routers_[name].peer = 0;
  if (role == 'g' && gateways_[name].peer == peer) gateways_[name].peer = 0;
  ToCore(peer, [peer] { return controller_event::Closed{peer}; });
  streams_.erase(peer);
}

void World::KillShard(const std::string& name) {
  Shard& shard = shards_.at(name);
  shard.alive = false;
  shard.hosted.clear();
  Break(shard.peer);
}

void World::RestartShard(const std::string& name) {
  KillShard(name);
  AddShard(name, shards_.at(name).capacity);
}

void World::CutShard(const std::string& name) { Break(shards_.at(name).peer); }

void World::KillRouter(const std::string& name) {
  routers_.at(name).alive = false;
  Break(routers_.at(name).peer);
}

void World::KillController() {
  core_.reset();
  tick_at_ = kNever;
  streams_.clear();
  for (auto& [name, shard] : shards_) shard.peer = 0;
  for (auto& [name, router] : routers_) router.peer = 0;
  for (auto& [name, gateway] : gateways_) gateway.peer = 0;
}

void World::StartController() {
  ControllerOptions options = options_;
  options.term = keep_state ? persisted_term_ + 1 : 1;
  options.known_members = keep_state ? persisted_members_ : std::vector<std::string>();
  persisted_term_ = options.term;
  core_ = std::make_unique<ControllerCore>(std::move(options));
  ++controller_life_;
  checked_ = Epoch{};
}

void World::ToCore(PeerId peer, std::function<ControllerEvent()> event) {
  MonoTime& last = to_core_[peer];
  last = std::max(last, now_ + Delay());
  At(last, [this, life = controller_life_, event = std::move(event)] {
    if (core_ != nullptr && controller_life_ == life) Handle(event());
  });
}

void World::Handle(const ControllerEvent& event) {
  std::vector<ControllerAction> actions;
  core_->Handle(now_, event, &actions);
  if (const auto* shard = std::get_if<controller_event::Shard>(&event)) {
    // What the core may publish from now on.
    const auto stream = streams_.find(shard->peer);
    if (stream != streams_.end() && stream->second.first == 's') {
      for (const auto& hosted : shard->report.experts) {
        std::set<control::ExpertKey>& reported = shards_[stream->second.second].reported;
        if (hosted.state == HostedState::kReady) reported.insert({hosted.layer, hosted.expert});
      }
    }
  }
  for (const ControllerAction& action : actions) Carry(action);
  tick_at_ = core_->next_deadline();
  if (tick_at_ < now_) Violation("next_deadline lies in the past");
  CheckPublished();
}

void World::CheckPublished() {
  const control::PlacementUpdate placement = core_->Placement();
  if (placement.epoch == checked_) return;
  if (placement.epoch < checked_) Violation("the epoch fell");
  checked_ = placement.epoch;
  for (const control::ExpertReplicas& entry : placement.replicas) {
    for (const ShardId id : entry.shards) {
      const auto shard = std::find_if(shards_.begin(), shards_.end(),
                                      [&](const auto& item) { return item.second.id == id.value; });
      if (shard == shards_.end()) continue;  // of a process that is gone; its stream's end is on its way
      if (shard->second.peer != 0 && !shard->second.reported.contains({entry.layer, entry.expert})) {
        Violation("published a copy on " + shard->first + " that it did not report ready");
      }
    }
  }
}

// The core may not know of it yet, and a DROP sent before may still be on its way.
bool World::JustAttached(const Router& router) const {
  return now_ < router.since + 4000 * MonoTime{delay_ms};
}

void World::FromCore(PeerId peer, std::function<void()> f) {
  MonoTime& last = from_core_[peer];
  last = std::max(last, now_ + Delay());
  At(last, [this, peer, f = std::move(f)] {
    if (streams_.contains(peer)) f();
  });
}

void World::Carry(const ControllerAction& action) {
  if (const auto* a = std::get_if<controller_action::ToShard>(&action)) {
    const auto stream = streams_.find(a->peer);
    if (stream == streams_.end()) return;
    FromCore(a->peer, [this, name = stream->second.second, command = a->command] { Obey(name, command); });
  } else if (const auto* r = std::get_if<controller_action::ToRouter>(&action)) {
    const auto stream = streams_.find(r->peer);
    if (stream == streams_.end()) return;
    FromCore(r->peer, [this, name = stream->second.second, update = r->update] { Take(name, update); });
  } else if (const auto* g = std::get_if<controller_action::ToGateway>(&action)) {
    const auto stream = streams_.find(g->peer);
    if (stream == streams_.end()) return;
    FromCore(g->peer, [this, name = stream->second.second, view = g->view] {
      gateways_[name].view = view;
      ++gateways_[name].updates;
    });
  } else if (const auto* c = std::get_if<controller_action::Close>(&action)) {
    FromCore(c->peer, [this, peer = c->peer] { Break(peer); });
  } else if (const auto* p = std::get_if<controller_action::Persist>(&action)) {
    if (p->term < persisted_term_) Violation("the term fell");
    persisted_term_ = p->term;
    persisted_members_ = p->members;
  } else if (const auto* n = std::get_if<controller_action::Note>(&action)) {
    notes_.push_back(n->text);
  }
}

void World::Obey(const std::string& name, const control::ShardCommand& command) {
  Shard& shard = shards_[name];
  if (!command.refused.empty()) {
    shard.refused = command.refused;
    return;
  }
  shard.id = command.shard_id.value;
  if (command.kind == control::CommandKind::kNone) return;
  const uint64_t incarnation = shard.who.incarnation;
  if (command.kind == control::CommandKind::kDrop) {
    std::vector<control::HostedExpert> changed;
    for (const control::ExpertKey& key : command.experts) {
      for (const auto& [router_name, router] : routers_) {
        if (!router.alive || router.peer == 0 || !router.acks || router.view == nullptr ||
            JustAttached(router))
          continue;
        const auto replicas = router.view->replicas(key.layer, key.expert);
        if (std::find(replicas.begin(), replicas.end(), command.shard_id) != replicas.end()) {
          Violation("DROP reached " + name + " while router " + router_name + " still uses the copy");
        }
      }
      shard.drops += shard.hosted.erase(key) > 0 ? 1 : 0;
      shard.reported.erase(key);
      changed.push_back({key.layer, key.expert, HostedState::kAbsent});
    }
    Report(name, false, changed, {{command.op_id, true, ""}});
    return;
  }
  const bool fail = shard.fail_loads > 0;
  if (fail) --shard.fail_loads;
  std::vector<control::HostedExpert> coming;
  for (const control::ExpertKey& key : command.experts) {
    if (shard.hosted.contains(key)) continue;
    shard.hosted[key] = HostedState::kLoading;
    coming.push_back({key.layer, key.expert, HostedState::kLoading});
  }
  Report(name, false, coming, {});
  At(now_ + load_ms * 1000, [this, name, incarnation, command, fail] {
    Shard& then = shards_[name];
    if (!then.alive || then.who.incarnation != incarnation) return;
    std::vector<control::HostedExpert> changed;
    for (const control::ExpertKey& key : command.experts) {
      const auto held = then.hosted.find(key);
      if (held == then.hosted.end()) continue;
      if (fail && held->second == HostedState::kLoading) {
        then.hosted.erase(held);
      } else {
        then.loads += held->second == HostedState::kLoading ? 1 : 0;
        held->second = HostedState::kReady;
      }
      changed.push_back({key.layer, key.expert, fail ? HostedState::kAbsent : HostedState::kReady});
    }
    if (then.capacity != 0 && then.hosted.size() * 100 > then.capacity) Violation(name + " was overfilled");
    Report(name, false, changed, {{command.op_id, !fail, fail ? "checksum differs" : ""}});
  });
}

void World::Report(const std::string& name, bool full, std::vector<control::HostedExpert> changed,
                   std::vector<control::OpResult> results) {
  Shard& shard = shards_[name];
  if (shard.peer == 0 || shard.silent) return;
  control::ShardReport report{.who = shard.who,
                              .capacity_bytes = shard.capacity,
                              .full = full,
                              .experts = std::move(changed),
                              .results = std::move(results),
                              .last_shard_id = shard.id};
  if (full) report.layers = layers;
  ToCore(shard.peer,
         [peer = shard.peer, report = std::move(report)] { return controller_event::Shard{peer, report}; });
}

void World::ReportRouter(const std::string& name) {
  Router& router = routers_[name];
  if (router.peer == 0) return;
  control::RouterReport report{.who = router.who, .loads = router.loads, .ready = router.ready};
  if (router.view != nullptr && router.acks) report.acked_epoch = router.view->epoch();
  ToCore(router.peer, [peer = router.peer, report] { return controller_event::Router{peer, report}; });
}

void World::Take(const std::string& name, const control::PlacementUpdate& update) {
  Router& router = routers_[name];
  if (!update.refused.empty()) {
    router.refused = update.refused;
    return;
  }
  if (update.epoch.value == 0) return;
  auto view = router.fold.Apply(update);
  if (!view.ok()) {
    if (router.acks) Violation("router " + name + ": " + std::string(view.status().message()));
    router.fold = PlacementFold();
    Break(router.peer);
    return;
  }
  if (*view == nullptr) return;
  ++(update.base_epoch.value == 0 ? router.snapshots : router.deltas);
  if (!router.epochs.empty() && update.epoch <= router.epochs.back())
    Violation("router " + name + ": epoch fell");
  router.epochs.push_back(update.epoch);
  router.view = *view;
  ReportRouter(name);
}

// What live members do about being unattached, and their periodic reports.
void World::Attach() {
  if (core_ == nullptr) return;
  for (auto& [name, shard] : shards_) {
    if (!shard.alive || shard.peer != 0 || shard.silent || !shard.refused.empty()) continue;
    shard.peer = next_peer_++;
    shard.reported.clear();
    streams_[shard.peer] = {'s', name};
    std::vector<control::HostedExpert> all;
    for (const auto& [key, state] : shard.hosted) all.push_back({key.layer, key.expert, state});
    Report(name, true, std::move(all), {});
  }
  for (auto& [name, router] : routers_) {
    if (!router.alive || router.peer != 0 || !router.refused.empty()) continue;
    router.peer = next_peer_++;
    router.since = now_;
    streams_[router.peer] = {'r', name};
    ReportRouter(name);
  }
  for (auto& [name, gateway] : gateways_) {
    if (gateway.peer != 0) continue;
    gateway.peer = next_peer_++;
    streams_[gateway.peer] = {'g', name};
    ToCore(gateway.peer,
           [peer = gateway.peer, name = name] { return controller_event::Gateway{peer, {name, 1}}; });
  }
}

void World::Run(uint32_t ms) {
  const MonoTime end = now_ + MonoTime{ms} * 1000;
  while (true) {
    // 20 ms between attempts to attach; reports at a third of the lease.
    MonoTime next =
        std::min({attach_at_, reports_at_, tick_at_, events_.empty() ? kNever : events_.top().at});
    if (next > end) break;
    now_ = std::max(now_, next);
    if (attach_at_ <= now_) {
      attach_at_ = now_ + 20000;
      Attach();
    } else if (reports_at_ <= now_) {
      reports_at_ = now_ + options_.lease_ms * 1000 / 3;
      for (auto& [name, shard] : shards_) Report(name, false, {}, {});
      for (auto& [name, router] : routers_) ReportRouter(name);
    } else if (!events_.empty() && events_.top().at <= now_) {
      const auto f = events_.top().f;
      events_.pop();
      f();
    } else {
      tick_at_ = kNever;
      if (core_ != nullptr) Handle(controller_event::Tick{});
    }
  }
  now_ = end;
}

size_t World::experts() const {
  size_t count = 0;
  for (const auto& layer : layers) count += layer.experts;
  return count;
}

uint32_t World::Hosted(const std::string& name) {
  uint32_t ready = 0;
  for (const auto& [key, state] : shards_.at(name).hosted) ready += state == HostedState::kReady ? 1 : 0;
  return ready;
}

}  // namespace consilium
