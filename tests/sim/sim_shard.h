// A simulated expert shard process: the real ExpertCore behind the real server session.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>

#include "services/expert/expert_core.h"
#include "tests/sim/sim_controller.h"
#include "tests/sim/sim_model.h"
#include "tests/sim/sim_network.h"

namespace consilium::sim {

class SimShard final : public FrameServer, public ControllerMember {
 public:
  SimShard(std::string name, SimClock* clock, Network* net, SimModel* model, BufferPool* pool,
           SimController* controller, uint32_t credit_rows);
  void Start();
  void Kill();
  bool alive() const { return core_ != nullptr; }
  const std::string& name() const { return name_; }
  ExpertCore* core() { return core_.get(); }

  // A router connects: the stream's end 1 is ours. `to_client` delivers a frame there.
  std::function<void(WireFrame)> Accept(const StreamRef& stream, std::function<void(WireFrame)> to_client);

  // FrameServer.
  void OnOpen(ConnId conn, std::shared_ptr<FrameLink> link, Lane lane, RouterHello hello) override;
  void OnBind(ConnId conn, RouterHello more) override;
  void OnFrame(ConnId conn, WireFrame frame) override;
  void OnClose(ConnId conn) override;

  // ControllerMember.
  ControllerEvent Report(PeerId peer, bool first) override;
  void OnCommand(const control::ShardCommand& command) override;
  bool running() const override { return alive(); }

 private:
  struct Conn {
    StreamRef stream;
    std::unique_ptr<ServerSession> session;
    std::shared_ptr<FrameLink> link;
  };
  void Handle(ExpertEvent& event);
  void Do(expert_action::Welcome& a);
  void Do(expert_action::Send& a);
  void Do(expert_action::Close& a);
  void Do(expert_action::RunJob& a);
  void Do(expert_action::Load& a);
  void Do(expert_action::Drop& a);
  void Do(expert_action::HostChanged& a);
  void Do(expert_action::OpDone& a);
  void SetTimer();

  const std::string name_;
  SimClock* const clock_;
  Network* const net_;
  SimModel* const model_;
  BufferPool* const pool_;
  SimController* const controller_;
  const uint32_t credit_rows_;
  uint64_t life_ = 0, incarnation_ = 0;
  ConnId next_conn_ = 1;
  uint32_t shard_id_ = 0;
  MonoTime timer_at_ = kNever;
  std::unique_ptr<ExpertBackend> backend_;
  std::unique_ptr<ExpertCore> core_;
  std::unique_ptr<Inbox<ExpertEvent>> inbox_;
  std::map<ConnId, Conn> conns_;
  std::map<ExpertKey, HostState> hosted_;
  std::set<ExpertKey> changed_;
  std::vector<control::OpResult> results_;
};

}  // namespace consilium::sim
