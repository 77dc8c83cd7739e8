#include "tests/sim/sim_worker.h"

#include "common/base/status.h"

namespace consilium::sim {

// One lane to one shard: dials again whenever the stream breaks.
struct SimWorker::Lane final : ExpertChannel::Sink {
  Lane(SimWorker* w, ShardId s, consilium::Lane l, std::string a, RouterHello hello)
      : worker(w), shard(s), lane(l), address(std::move(a)), session(std::move(hello), l, w->w_.pool, this) {}
  void OnUp(uint32_t, uint64_t incarnation, Credit credit) override {
    worker->Post(attention_event::ChannelUp{shard, lane, incarnation, credit});
  }
  void OnResult(CallResult result) override {
    if (worker->w_.clock->Pick(100) < worker->w_.duplicate_percent) {
      worker->Post(attention_event::ChannelResult{shard, lane, result});
    }
    worker->Post(attention_event::ChannelResult{shard, lane, std::move(result)});
  }
  void OnReject(CallReject reject) override {
    worker->Post(attention_event::ChannelReject{shard, lane, std::move(reject)});
  }
  void OnCredit(Credit credit) override { worker->Post(attention_event::ChannelCredit{shard, lane, credit}); }
  void OnHeartbeat(frame::Timing t) override {
    worker->Post(attention_event::ChannelHeartbeat{shard, lane, t});
  }
  void OnDrain() override { worker->Post(attention_event::ChannelDrain{shard, lane}); }
  void OnDown(absl::Status status) override {
    worker->Post(attention_event::ChannelDown{shard, lane, std::move(status)});
  }

  SimWorker* const worker;
  const ShardId shard;
  const consilium::Lane lane;
  const std::string address;
  ChannelSession session;
  StreamRef stream;
  bool wanted = true;
};

SimWorker::SimWorker(std::string name, Wiring wiring, AttentionConfig config)
    : name_(std::move(name)), w_(std::move(wiring)), config_(std::move(config)) {
  config_.worker = name_;
}
SimWorker::~SimWorker() = default;

void SimWorker::Start() {
  ++life_;
  incarnation_ = w_.clock->rng();
  backend_ = w_.model->NewLayers(w_.pool, {config_.shape.kv_blocks, config_.shape.state_slots,
                                           config_.flights, config_.flight_rows_max});
  core_ = std::make_unique<AttentionCore>(config_, w_.pool);
  inbox_ = std::make_unique<Inbox<AttentionEvent>>([this](AttentionEvent& e) { Handle(e); });
  timer_at_ = kNever;
  fold_ = PlacementFold();
  acked_ = Epoch();
  w_.controller->Join(this, name_);
}

void SimWorker::Kill() {
  w_.controller->Leave(this);
  ++life_;
  const AttentionStats& s = core_->stats();
  total_.preemptions += s.preemptions;
  total_.resends += s.resends;
  total_.prefix_hits += s.prefix_hits;
  total_.unknown_results += s.unknown_results;
  if (s.mismatches > 0) w_.violation(name_ + ": a duplicate result had other bits");
  for (auto& [key, lane] : lanes_) {
    lane->wanted = false;
    if (lane->stream != nullptr) w_.net->Die(lane->stream, 0);
  }
  for (auto& [id, g] : std::exchange(gateways_, {})) w_.net->Die(g.stream, 1);
  lanes_.clear();
  inbox_.reset();
  core_.reset();
  backend_.reset();
}

void SimWorker::Handle(AttentionEvent& event) {
  std::vector<AttentionAction> actions;
  core_->Handle(w_.clock->now(), std::move(event), &actions);
  for (AttentionAction& action : actions) std::visit([this](auto& a) { Do(a); }, action);
  SetTimer();
}

void SimWorker::Do(attention_action::RunStage& a) {
  const MonoTime us =
      20 + static_cast<MonoTime>(a.job.batch->rows.size()) * static_cast<MonoTime>(1 + w_.clock->Pick(8));
  w_.clock->In(us, "stage", a.job.flight.value * 4 + static_cast<uint64_t>(a.job.kind),
               [this, us, job = a.job, life = life_] {
                 if (life != life_) return;
                 backend_->Run(job, [this, us](StageOut out) {
                   out.compute_us = static_cast<uint32_t>(us);  // virtual time only
                   for (const SampleResult& s : out.samples) w_.clock->Note("sample", s.token);
                   Post(attention_event::StageDone{std::move(out)});
                 });
               });
}
void SimWorker::Do(attention_action::AbandonFlight& a) { backend_->Abandon(a.flight); }
void SimWorker::Do(attention_action::SendCall& a) {
  auto it = lanes_.find({a.shard, a.lane});
  const absl::Status s =
      it == lanes_.end() ? Unavailable("no lane") : it->second->session.Send(a.call, *a.body, a.options);
  // What the shell does: the stream changed under the core, the call is tried again.
  if (!s.ok()) {
    Post(attention_event::ChannelReject{
        a.shard, a.lane, {a.call, frame::RejectCode::kOverloaded, 0, ToString(s)}});
    if (s.code() == absl::StatusCode::kResourceExhausted) w_.violation(name_ + ": sent without credit");
  }
}
void SimWorker::Do(attention_action::CancelCall& a) {
  if (auto it = lanes_.find({a.shard, a.lane}); it != lanes_.end()) it->second->session.Cancel(a.call);
}
void SimWorker::Do(attention_action::Emit& a) {
  auto it = gateways_.find(a.session);
  if (it == gateways_.end()) return;
  const StreamRef stream = it->second.stream;
  w_.net->Send(stream, 0, "tokens", a.session,
               [emit = it->second.emit, events = std::move(a.events)] { emit(events); });
}
void SimWorker::Do(attention_action::ConnectShard& a) {
  RouterHello hello;
  hello.router_id = name_;
  hello.incarnation = incarnation_;
  const BackendShape& shape = config_.shape;
  hello.models.push_back({0, w_.model->manifest, shape.hidden, shape.dtype_in, shape.dtype_out});
  hello.classes.push_back({0, w_.model->class_name, w_.model->fingerprint});
  for (consilium::Lane l : {consilium::Lane::kDecode, consilium::Lane::kBulk}) {
    auto lane = std::make_shared<Lane>(this, a.shard.id, l, a.shard.address, hello);
    lanes_[{a.shard.id, l}] = lane;
    Dial(lane);
  }
}
void SimWorker::Do(attention_action::DisconnectShard& a) {
  for (consilium::Lane l : {consilium::Lane::kDecode, consilium::Lane::kBulk}) {
    auto it = lanes_.find({a.shard, l});
    if (it == lanes_.end()) continue;
    it->second->wanted = false;
    if (it->second->stream != nullptr) w_.net->Die(it->second->stream, 0);
    w_.clock->In(0, "lane closed", a.shard.value, [lane = it->second] {});  // may be the caller: dies later
    lanes_.erase(it);
  }
}
void SimWorker::Do(attention_action::Log& a) { w_.clock->Say(name_ + ": " + a.request_id + " " + a.text); }

void SimWorker::Dial(const std::shared_ptr<Lane>& lane) {
  const uint64_t life = life_;
  w_.clock->In(200, "dial", lane->shard.value, [this, lane, life] {
    if (life != life_ || !lane->wanted) return;
    SimShard* shard = w_.find_shard(lane->address);
    if (shard == nullptr) {
      w_.clock->In(50000, "redial", lane->shard.value, [this, lane, life] {
        if (life == life_ && lane->wanted) Dial(lane);
      });
      return;
    }
    StreamRef s = w_.net->Open(name_ + "-" + lane->address);
    lane->stream = s;
    // Weak: the lane owns its stream and session, which own these.
    s->down[0] = [this, weak = std::weak_ptr<Lane>(lane), life](const absl::Status& why) {
      const std::shared_ptr<Lane> open = weak.lock();
      if (life != life_ || open == nullptr) return;
      open->session.OnLinkDown(why);
      w_.clock->In(50000, "redial", open->shard.value, [this, open, life] {
        if (life == life_ && open->wanted) Dial(open);
      });
    };
    auto to_client = [this, weak = std::weak_ptr<Lane>(lane), life, s](WireFrame frame) {
      const std::shared_ptr<Lane> open = weak.lock();
      if (life != life_ || open == nullptr || open->stream != s) return;
      const absl::Status status = open->session.OnFrame(std::move(frame));
      if (!status.ok()) w_.net->Break(s);
    };
    auto to_shard = shard->Accept(s, to_client);
    lane->session.OnLinkUp(std::make_shared<SimLink>(w_.net, s, 0, to_shard));
  });
}

void SimWorker::CutSomeShard() {
  if (lanes_.empty()) return;
  auto it = lanes_.begin();
  std::advance(it, static_cast<long>(w_.clock->Pick(lanes_.size())));
  if (it->second->stream != nullptr) w_.net->Break(it->second->stream);
}

SessionId SimWorker::OpenSession(const StreamRef& stream,
                                 std::function<void(const SessionEvents&)> to_gateway) {
  const SessionId id = next_session_++;
  gateways_[id] = {stream, std::move(to_gateway)};
  stream->down[1] = [this, id, life = life_](const absl::Status&) {
    if (life != life_) return;
    gateways_.erase(id);
    Post(attention_event::SessionClosed{id});
  };
  return id;
}

void SimWorker::SetTimer() {
  const MonoTime at = core_->next_deadline();
  if (at >= timer_at_) return;
  timer_at_ = at;
  w_.clock->At(at, "worker timer", life_, [this, at, life = life_] {
    if (life != life_) return;
    if (timer_at_ == at) timer_at_ = kNever;
    Post(attention_event::Timer{});
  });
}

ControllerEvent SimWorker::Report(PeerId peer, bool) {
  control::RouterReport r;
  r.who = {.name = name_,
           .incarnation = incarnation_,
           .address = name_,
           .admin = "",
           .model_id = "sim",
           .manifest = w_.model->manifest,
           .class_name = w_.model->class_name,
           .fingerprint = w_.model->fingerprint};
  r.acked_epoch = acked_;
  r.ready = true;
  return controller_event::Router{peer, std::move(r)};
}

void SimWorker::OnPlacement(const control::PlacementUpdate& update) {
  if (!update.refused.empty()) return;
  auto view = fold_.Apply(update);
  if (!view.ok()) {  // a delta of another base: attach anew for a snapshot
    w_.controller->Cut(this);
    return;
  }
  if (*view == nullptr) return;
  Post(attention_event::PlacementUpdate{*view});
  acked_ = (*view)->epoch();
  w_.controller->Report(this);
}

}  // namespace consilium::sim
