// A simulated attention worker process: the real AttentionCore behind the real channel sessions.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/net/placement_fold.h"
#include "services/attention/attention_core.h"
#include "tests/sim/sim_controller.h"
#include "tests/sim/sim_model.h"
#include "tests/sim/sim_network.h"
#include "tests/sim/sim_shard.h"

namespace consilium::sim {

class SimWorker final : public ControllerMember {
 public:
  struct Wiring {
    SimClock* clock;
    Network* net;
    SimModel* model;
    BufferPool* pool;
    SimController* controller;
    std::function<SimShard*(const std::string& address)> find_shard;  // null: nobody listens there
    std::function<void(const std::string&)> violation;
    uint32_t duplicate_percent = 0;  // of results are delivered twice
  };
  SimWorker(std::string name, Wiring wiring, AttentionConfig config);
  ~SimWorker() override;
  void Start();
  void Kill();
  bool alive() const { return core_ != nullptr; }
  const std::string& name() const { return name_; }
  AttentionCore* core() { return core_.get(); }
  // Sums over all lives of this process.
  AttentionStats total() const { return total_; }

  // A gateway connects: end 1 is ours. The result takes what the gateway sends; `to_gateway` is given each
  // step's events.
  SessionId OpenSession(const StreamRef& stream, std::function<void(const SessionEvents&)> to_gateway);
  void Submit(SessionId session, SessionSubmit submit) {
    Post(attention_event::Submit{session, std::move(submit)});
  }
  void Cancel(SessionId session, uint64_t request) { Post(attention_event::Cancel{session, request, -1}); }

  // Breaks one stream to a shard, if there is one.
  void CutSomeShard();

  ControllerEvent Report(PeerId peer, bool first) override;
  void OnPlacement(const control::PlacementUpdate& update) override;
  bool running() const override { return alive(); }

 private:
  struct Lane;
  void Post(AttentionEvent e) {
    if (inbox_ != nullptr) inbox_->Post(std::move(e));
  }
  void Handle(AttentionEvent& event);
  void Do(attention_action::RunStage& a);
  void Do(attention_action::AbandonFlight& a);
  void Do(attention_action::SendCall& a);
  void Do(attention_action::CancelCall& a);
  void Do(attention_action::Emit& a);
  void Do(attention_action::ConnectShard& a);
  void Do(attention_action::DisconnectShard& a);
  void Do(attention_action::Log& a);
  void Do(attention_action::Observe&) {}
  void SetTimer();
  void Dial(const std::shared_ptr<Lane>& lane);

  const std::string name_;
  const Wiring w_;
  AttentionConfig config_;
  uint64_t life_ = 0, incarnation_ = 0;
  SessionId next_session_ = 1;
  MonoTime timer_at_ = kNever;
  std::unique_ptr<LayerBackend> backend_;
  std::unique_ptr<AttentionCore> core_;
  std::unique_ptr<Inbox<AttentionEvent>> inbox_;
  std::map<std::pair<ShardId, consilium::Lane>, std::shared_ptr<Lane>> lanes_;
  struct Gateway {
    StreamRef stream;
    std::function<void(const SessionEvents&)> emit;
  };
  std::map<SessionId, Gateway> gateways_;
  PlacementFold fold_;
  Epoch acked_;
  AttentionStats total_;
};

}  // namespace consilium::sim
