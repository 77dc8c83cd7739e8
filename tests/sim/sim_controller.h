// The simulated controller process: the real ControllerCore, its streams to members, and the file it keeps.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/controller/controller_core.h"
#include "tests/sim/sim_network.h"

namespace consilium::sim {

// A shard's or router's side of its stream.
class ControllerMember {
 public:
  virtual ~ControllerMember() = default;
  virtual ControllerEvent Report(PeerId peer, bool first) = 0;
  virtual void OnCommand(const control::ShardCommand& /*command*/) {}
  virtual void OnPlacement(const control::PlacementUpdate& /*update*/) {}
  virtual bool running() const = 0;

 private:
  friend class SimController;
  uint64_t attach_life_ = 0;
  PeerId peer_ = 0;
};

class SimController {
 public:
  SimController(SimClock* clock, Network* net, ControllerOptions options);
  void Start();
  void Kill();
  bool alive() const { return core_ != nullptr; }
  // From a member's start to its death: attaches, reports, attaches again.
  void Join(ControllerMember* member, const std::string& name);
  void Leave(ControllerMember* member);   // it died
  void Cut(ControllerMember* member);     // its stream breaks
  void Report(ControllerMember* member);  // something changed

 private:
  struct Peer {
    ControllerMember* member = nullptr;
    StreamRef stream;
  };
  void Attach(ControllerMember* member, std::string name, uint64_t life);
  void Periodic(ControllerMember* member, uint64_t life);
  void Handle(const ControllerEvent& event);
  void ToMember(PeerId peer, std::function<void(ControllerMember*)> f);
  void SetTimer();

  SimClock* const clock_;
  Network* const net_;
  ControllerOptions options_;
  uint64_t life_ = 0;
  uint32_t term_ = 0;                 // of the file
  std::vector<std::string> members_;  // of the file
  PeerId next_peer_ = 1;
  MonoTime timer_at_ = kNever;
  std::unique_ptr<ControllerCore> core_;
  std::map<PeerId, Peer> peers_;
};

}  // namespace consilium::sim
