#include "tests/sim/sim_shard.h"

#include "common/base/status.h"

namespace consilium::sim {

SimShard::SimShard(std::string name, SimClock* clock, Network* net, SimModel* model, BufferPool* pool,
                   SimController* controller, uint32_t credit_rows)
    : name_(std::move(name)),
      clock_(clock),
      net_(net),
      model_(model),
      pool_(pool),
      controller_(controller),
      credit_rows_(credit_rows) {}

void SimShard::Start() {
  ++life_;
  incarnation_ = clock_->rng();
  const BackendShape shape = model_->shape();
  ExpertCoreOptions o;
  o.manifest = model_->manifest;
  o.hidden = shape.hidden;
  o.dtype_in = static_cast<frame::DtypeCode>(shape.dtype_in);
  o.dtype_out = static_cast<frame::DtypeCode>(shape.dtype_out);
  o.class_name = model_->class_name;
  o.fingerprint = model_->fingerprint;
  o.layers = shape.layers;
  o.experts = shape.experts;
  for (const control::MoeLayer& layer : model_->moe_layers()) {
    for (uint16_t e = 0; e < layer.experts; ++e)
      o.expert_bytes[{layer.layer, ExpertId(e)}] = layer.expert_bytes;
  }
  o.credit_rows = credit_rows_;
  backend_ = model_->NewExperts();
  core_ = std::make_unique<ExpertCore>(o, pool_);
  inbox_ = std::make_unique<Inbox<ExpertEvent>>([this](ExpertEvent& e) { Handle(e); });
  timer_at_ = kNever;
  controller_->Join(this, name_);
}

void SimShard::Kill() {
  controller_->Leave(this);
  ++life_;
  for (auto& [id, conn] : std::exchange(conns_, {})) net_->Die(conn.stream, 1);
  inbox_.reset();
  core_.reset();
  backend_.reset();
  hosted_.clear();
  changed_.clear();
  results_.clear();
  shard_id_ = 0;
}

std::function<void(WireFrame)> SimShard::Accept(const StreamRef& stream,
                                                std::function<void(WireFrame)> to_client) {
  const ConnId id = next_conn_++;
  Conn& conn = conns_[id];
  conn.stream = stream;
  auto link = std::make_shared<SimLink>(net_, stream, 1, std::move(to_client));
  conn.session = std::make_unique<ServerSession>(id, link, this);
  const uint64_t life = life_;
  auto down = [this, id, life](const absl::Status&) {
    if (life != life_) return;
    auto it = conns_.find(id);
    if (it == conns_.end()) return;
    it->second.session->OnLinkDown();
    conns_.erase(id);
  };
  stream->down[1] = down;
  return [this, id, life, link, down](WireFrame frame) {
    if (life != life_) return;
    auto it = conns_.find(id);
    if (it == conns_.end()) return;
    const absl::Status s = it->second.session->OnFrame(std::move(frame));
    if (s.ok()) return;
    link->Close(s);
    down(s);
  };
}

void SimShard::OnOpen(ConnId conn, std::shared_ptr<FrameLink> link, Lane lane, RouterHello hello) {
  conns_.at(conn).link = std::move(link);
  inbox_->Post(expert_event::ConnOpened{conn, lane, std::move(hello)});
}
void SimShard::OnBind(ConnId conn, RouterHello more) {
  inbox_->Post(expert_event::Bound{conn, std::move(more)});
}
void SimShard::OnFrame(ConnId conn, WireFrame frame) {
  inbox_->Post(expert_event::FrameIn{conn, std::move(frame)});
}
void SimShard::OnClose(ConnId conn) { inbox_->Post(expert_event::ConnClosed{conn}); }

void SimShard::Handle(ExpertEvent& event) {
  std::vector<ExpertAction> actions;
  core_->Handle(clock_->now(), std::move(event), &actions);
  for (ExpertAction& action : actions) std::visit([this](auto& a) { Do(a); }, action);
  if (!changed_.empty() || !results_.empty()) controller_->Report(this);
  SetTimer();
}

void SimShard::Do(expert_action::Welcome& a) {
  auto it = conns_.find(a.conn);
  if (it == conns_.end()) return;
  WelcomeInfo info;
  info.shard_id = shard_id_;
  info.incarnation = incarnation_;
  info.models = a.models;
  info.classes = a.classes;
  info.credit = a.credit;
  it->second.link->Write(WireFrame{EncodeWelcome(a.hello, info, pool_), false, {}});
}
void SimShard::Do(expert_action::Send& a) {
  if (auto it = conns_.find(a.conn); it != conns_.end() && it->second.link != nullptr) {
    it->second.link->Write(WireFrame{std::move(a.frame), false, {}});
  }
}
void SimShard::Do(expert_action::Close& a) {
  if (auto it = conns_.find(a.conn); it != conns_.end()) net_->Break(it->second.stream);
}
void SimShard::Do(expert_action::RunJob& a) {
  const MonoTime us =
      20 + static_cast<MonoTime>(a.job.rows.size()) * static_cast<MonoTime>(1 + clock_->Pick(10));
  clock_->In(us, "job", a.job.rows.size(), [this, us, job = a.job, life = life_] {
    if (life != life_) return;
    backend_->Run(job, [this, us](FfnDone done) {
      inbox_->Post(expert_event::JobDone{done.status, static_cast<uint32_t>(us)});  // virtual time only
    });
  });
}
void SimShard::Do(expert_action::Load& a) {
  clock_->In(100 + static_cast<MonoTime>(clock_->Pick(3000)), "load", a.key.expert.value,
             [this, key = a.key, life = life_] {
               if (life != life_) return;
               auto handle = backend_->Load(model_->entry(key.layer, key.expert), model_->store());
               inbox_->Post(expert_event::LoadDone{key, handle.status(), handle.ok() ? *handle : 0});
             });
}
void SimShard::Do(expert_action::Drop& a) { backend_->Drop(a.handle); }
void SimShard::Do(expert_action::HostChanged& a) {
  if (a.state == HostState::kAbsent)
    hosted_.erase(a.key);
  else
    hosted_[a.key] = a.state;
  changed_.insert(a.key);
}
void SimShard::Do(expert_action::OpDone& a) { results_.push_back({a.op_id, a.ok, a.text}); }

ControllerEvent SimShard::Report(PeerId peer, bool first) {
  control::ShardReport r;
  r.who = {.name = name_,
           .incarnation = incarnation_,
           .address = name_,
           .admin = "",
           .model_id = "sim",
           .manifest = model_->manifest,
           .class_name = model_->class_name,
           .fingerprint = model_->fingerprint};
  r.full = first;
  r.last_shard_id = shard_id_;
  if (first) {
    r.layers = model_->moe_layers();
    for (const auto& [key, state] : hosted_) {
      r.experts.push_back({key.layer, key.expert, static_cast<control::HostedState>(state)});
    }
  } else {
    for (const ExpertKey& key : changed_) {
      const auto it = hosted_.find(key);
      const HostState state = it == hosted_.end() ? HostState::kAbsent : it->second;
      r.experts.push_back({key.layer, key.expert, static_cast<control::HostedState>(state)});
    }
  }
  changed_.clear();
  r.results = std::exchange(results_, {});
  return controller_event::Shard{peer, std::move(r)};
}

void SimShard::OnCommand(const control::ShardCommand& c) {
  if (!c.refused.empty()) return;
  shard_id_ = c.shard_id.value;
  if (c.kind == control::CommandKind::kNone) return;
  expert_event::Command command;
  command.kind = static_cast<expert_event::Command::Kind>(static_cast<int>(c.kind) - 1);
  command.op_id = c.op_id;
  for (const control::ExpertKey& key : c.experts) command.experts.push_back({key.layer, key.expert});
  inbox_->Post(std::move(command));
}

void SimShard::SetTimer() {
  const MonoTime at = core_->next_deadline();
  if (at >= timer_at_) return;
  timer_at_ = at;
  clock_->At(at, "shard tick", life_, [this, at, life = life_] {
    if (life != life_) return;
    if (timer_at_ == at) timer_at_ = kNever;
    inbox_->Post(expert_event::Tick{});
  });
}

}  // namespace consilium::sim
