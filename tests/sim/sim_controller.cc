#include "tests/sim/sim_controller.h"

namespace consilium::sim {

SimController::SimController(SimClock* clock, Network* net, ControllerOptions options)
    : clock_(clock), net_(net), options_(std::move(options)) {}

void SimController::Start() {
  ++life_;
  ControllerOptions o = options_;
  o.term = ++term_;
  o.known_members = members_;
  core_ = std::make_unique<ControllerCore>(std::move(o));
  timer_at_ = kNever;
}

void SimController::Kill() {
  core_.reset();
  ++life_;
  auto peers = std::exchange(peers_, {});
  for (auto& [id, peer] : peers) net_->Die(peer.stream, 1);
}

void SimController::Join(ControllerMember* member, const std::string& name) {
  const uint64_t life = ++member->attach_life_;
  member->peer_ = 0;
  clock_->In(100, "join", life, [this, member, name, life] { Attach(member, name, life); });
  Periodic(member, life);
}

void SimController::Leave(ControllerMember* member) {
  ++member->attach_life_;
  if (auto it = peers_.find(member->peer_); it != peers_.end()) net_->Die(it->second.stream, 0);
  member->peer_ = 0;
}

void SimController::Cut(ControllerMember* member) {
  if (auto it = peers_.find(member->peer_); it != peers_.end()) net_->Break(it->second.stream);
}

void SimController::Attach(ControllerMember* member, std::string name, uint64_t life) {
  if (member->attach_life_ != life) return;
  if (core_ == nullptr) {
    clock_->In(100000, "attach", life, [this, member, name, life] { Attach(member, name, life); });
    return;
  }
  const PeerId id = next_peer_++;
  StreamRef s = net_->Open("controller-" + name);
  s->down[0] = [this, member, name, life, id](const absl::Status&) {
    if (member->attach_life_ != life || member->peer_ != id) return;
    member->peer_ = 0;
    clock_->In(50000, "attach", life, [this, member, name, life] { Attach(member, name, life); });
  };
  s->down[1] = [this, id, at = life_](const absl::Status&) {
    if (at != life_) return;
    peers_.erase(id);
    Handle(controller_event::Closed{id});
  };
  peers_[id] = {member, s};
  member->peer_ = id;
  net_->Send(s, 1, "report", id, [this, e = member->Report(id, true)] { Handle(e); });
}

void SimController::Periodic(ControllerMember* member, uint64_t life) {
  clock_->In(1'000'000, "periodic", life, [this, member, life] {
    if (member->attach_life_ != life) return;
    Report(member);
    Periodic(member, life);
  });
}

void SimController::Report(ControllerMember* member) {
  auto it = peers_.find(member->peer_);
  if (member->peer_ == 0 || it == peers_.end()) return;
  net_->Send(it->second.stream, 1, "report", member->peer_,
             [this, e = member->Report(member->peer_, false)] { Handle(e); });
}

void SimController::ToMember(PeerId peer, std::function<void(ControllerMember*)> f) {
  auto it = peers_.find(peer);
  if (it == peers_.end()) return;
  ControllerMember* member = it->second.member;
  net_->Send(it->second.stream, 0, "command", peer, [member, life = member->attach_life_, f = std::move(f)] {
    if (member->attach_life_ == life && member->running()) f(member);
  });
}

void SimController::Handle(const ControllerEvent& event) {
  if (core_ == nullptr) return;
  std::vector<ControllerAction> actions;
  core_->Handle(clock_->now(), event, &actions);
  for (const ControllerAction& action : actions) {
    if (const auto* a = std::get_if<controller_action::ToShard>(&action)) {
      ToMember(a->peer, [command = a->command](ControllerMember* m) { m->OnCommand(command); });
    } else if (const auto* b = std::get_if<controller_action::ToRouter>(&action)) {
      ToMember(b->peer, [update = b->update](ControllerMember* m) { m->OnPlacement(update); });
    } else if (const auto* c = std::get_if<controller_action::Close>(&action)) {
      if (auto it = peers_.find(c->peer); it != peers_.end())
        net_->Close(it->second.stream, 1, absl::OkStatus());
      peers_.erase(c->peer);
    } else if (const auto* p = std::get_if<controller_action::Persist>(&action)) {
      term_ = p->term;
      members_ = p->members;
    } else if (const auto* n = std::get_if<controller_action::Note>(&action)) {
      clock_->Say("controller: " + n->text);
    }
  }
  SetTimer();
}

void SimController::SetTimer() {
  const MonoTime at = std::max(core_->next_deadline(), clock_->now() + 1000);
  if (core_->next_deadline() == kNever || at >= timer_at_) return;
  timer_at_ = at;
  clock_->At(at, "controller tick", life_, [this, at, life = life_] {
    if (life != life_) return;
    if (timer_at_ == at) timer_at_ = kNever;
    Handle(controller_event::Tick{});
  });
}

}  // namespace consilium::sim
