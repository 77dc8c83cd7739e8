// For tests: a controller core with fake shards, routers and gateways around it, under a virtual clock.
// Messages take 1..delay_ms, in order per stream. Checks on its way that
//  * a replica is published only if its process reported it ready on this stream and was not told to drop it
//  since;
//  * epochs that a router gets only rise, over controller restarts too;
//  * a DROP reaches a shard only when no attached router still uses a view that names the copy.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "common/net/placement_fold.h"
#include "services/controller/controller_core.h"

namespace consilium {

class World {
 public:
  struct Shard {
    control::MemberIdentity who;
    uint64_t capacity = 0;
    PeerId peer = 0;  // 0: not attached
    bool alive = true;
    uint32_t id = 0;  // given
    std::map<control::ExpertKey, control::HostedState> hosted;
    std::set<control::ExpertKey> reported;  // ready, as told on this stream
    uint32_t loads = 0, drops = 0;          // experts loaded, dropped on command
    uint32_t fail_loads = 0;                // next loads to fail
    bool silent = false;                    // sends nothing (a stuck process)
    std::string refused;
  };
  struct Router {
    control::MemberIdentity who;
    PeerId peer = 0;
    bool alive = true, ready = true, acks = true;
    MonoTime since = 0;  // attached
    PlacementFold fold;
    std::shared_ptr<const PlacementView> view;
    std::vector<Epoch> epochs;  // as taken
    uint32_t snapshots = 0, deltas = 0;
    std::vector<control::ExpertLoad> loads;  // in every report
    std::string refused;
  };
  struct Gateway {
    PeerId peer = 0;
    control::ClusterView view;
    uint32_t updates = 0;
  };

  explicit World(ControllerOptions options = {}, uint64_t seed = 1);

  std::vector<control::MoeLayer> layers{{LayerId{1}, 8, 100}, {LayerId{2}, 8, 100}};
  std::string manifest = std::string(32, 'm');
  uint32_t delay_ms = 1, load_ms = 5;
  bool keep_state = true;  // the state directory survives a controller restart

  Shard& AddShard(const std::string& name, uint64_t capacity = 0);
  Router& AddRouter(const std::string& name);
  Gateway& AddGateway(const std::string& name);
  void KillShard(const std::string& name);     // the process and what it held
  void RestartShard(const std::string& name);  // a new process, empty
  void CutShard(const std::string& name);      // only its stream; it attaches again
  void KillRouter(const std::string& name);
  void KillController();
  void StartController();
  void Run(uint32_t ms);

  ControllerCore& core() { return *core_; }
  bool controller_up() const { return core_ != nullptr; }
  Shard& shard(const std::string& name) { return shards_.at(name); }
  Router& router(const std::string& name) { return routers_.at(name); }
  Gateway& gateway(const std::string& name) { return gateways_.at(name); }
  std::map<std::string, Shard>& shards() { return shards_; }
  std::map<std::string, Router>& routers() { return routers_; }
  MonoTime now() const { return now_; }
  size_t experts() const;
  uint32_t term() const { return persisted_term_; }
  std::vector<std::string>& notes() { return notes_; }
  // Of all ready copies.
  uint32_t Hosted(const std::string& name);
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  void At(MonoTime t, std::function<void()> f);
  void ToCore(PeerId peer, std::function<ControllerEvent()> event);
  void Handle(const ControllerEvent& event);
  void Carry(const ControllerAction& action);
  void FromCore(PeerId peer, std::function<void()> f);
  void Break(PeerId peer);
  void Attach();
  void Report(const std::string& name, bool full, std::vector<control::HostedExpert> changed,
              std::vector<control::OpResult> results);
  void ReportRouter(const std::string& name);
  void Obey(const std::string& name, const control::ShardCommand& command);
  void Take(const std::string& name, const control::PlacementUpdate& update);
  void CheckPublished();
  bool JustAttached(const Router& router) const;
  void Violation(const std::string& text);
  control::MemberIdentity Who(const std::string& name);
  MonoTime Delay();

  struct Event {
    MonoTime at;
    uint64_t order;
    std::function<void()> f;
    bool operator<(const Event& o) const { return at != o.at ? at > o.at : order > o.order; }
  };
  ControllerOptions options_;
  std::mt19937_64 random_;
  MonoTime now_ = 1000;
  uint64_t order_ = 0, next_incarnation_ = 100;
  PeerId next_peer_ = 1;
  std::priority_queue<Event> events_;
  std::unique_ptr<ControllerCore> core_;
  uint32_t controller_life_ = 0;  // messages to an earlier one are lost
  uint32_t persisted_term_ = 0;
  std::vector<std::string> persisted_members_;
  std::map<std::string, Shard> shards_;
  std::map<std::string, Router> routers_;
  std::map<std::string, Gateway> gateways_;
  std::map<PeerId, std::pair<char, std::string>> streams_;  // open ones: role s, r, g and name
  std::map<PeerId, MonoTime> to_core_, from_core_;          // last delivery, for order
  MonoTime tick_at_ = kNever, reports_at_ = 0, attach_at_ = 0;
  Epoch checked_;
  std::vector<std::string> notes_, violations_;
};

}  // namespace consilium
