// The controller's state machine: who is there, who should hold what, who is told what. Single-threaded, no
// clock, no I/O; events and the time in, actions out.
//
//  * A member is its stream. A broken stream or a missed lease takes its replicas out of the view at once; a
//  shard's slot
//    is kept for rehost_grace, so that a restarted shard of the same name takes its experts back; then
//    survivors load them.
//  * Nothing is published before the first plan (expected shards, members known from before, or settle time),
//  so a
//    restarted controller never takes away what routers use; hosted experts stay where shards report them.
//  * Make before break: LOAD, publish when ready; take out of the view, and DROP once every router acked that
//  epoch or the
//    ack time is over (then NOT_HOSTED is the safety net).
//  * Epochs (term, sequence) only rise. The term is persisted, and learnt from routers and shards if that was
//  lost.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/net/control_messages.h"
#include "services/controller/published_view.h"

namespace consilium {

using PeerId = uint64_t;  // one stream, given by the shell, never reused

struct ControllerOptions {
  uint32_t term = 1;  // above every term used before
  uint32_t replicas = 1;
  uint32_t lease_ms = 5000;
  uint32_t expected_shards = 0;  // first plan as soon as so many are there; 0: unknown
  uint32_t settle_ms = 2000;     // longest wait for the first plan after the first shard
  uint32_t quiet_ms = 300;       // and no join for that long
  uint32_t rehost_grace_ms = 5000;
  uint32_t ack_timeout_ms = 5000;  // routers, for an epoch
  uint32_t op_timeout_ms = 30000;  // shards, without any progress; then the op is sent again
  uint32_t retry_ms = 1000;        // after a failed op, doubled each time up to 64x
  uint32_t publish_ms = 20;        // least time between two epochs
  std::vector<std::string> known_members =
      {};  // "shard NAME", "router NAME": of the last controller; waited for
};

namespace controller_event {
struct Shard {
  PeerId peer;
  control::ShardReport report;
};  // a peer's first report is its attachment
struct Router {
  PeerId peer;
  control::RouterReport report;
};
struct Gateway {
  PeerId peer;
  control::GatewayReport report;
};
struct Closed {
  PeerId peer;
};
struct Tick {};
}  // namespace controller_event
using ControllerEvent =
    std::variant<controller_event::Shard, controller_event::Router, controller_event::Gateway,
                 controller_event::Closed, controller_event::Tick>;

namespace controller_action {
struct ToShard {
  PeerId peer;
  control::ShardCommand command;
};
struct ToRouter {
  PeerId peer;
  control::PlacementUpdate update;
};
struct ToGateway {
  PeerId peer;
  control::ClusterView view;
};
struct Close {
  PeerId peer;
};  // after what was sent before
// Durable before the actions that follow it are carried out.
struct Persist {
  uint32_t term;
  std::vector<std::string> members;
};
struct Note {
  bool warning;
  std::string text;
};  // for the log
}  // namespace controller_action
using ControllerAction =
    std::variant<controller_action::ToShard, controller_action::ToRouter, controller_action::ToGateway,
                 controller_action::Close, controller_action::Persist, controller_action::Note>;

struct ControllerMember {
  std::string role, name, address, state;
};
struct ControllerStats {
  uint32_t shards = 0, routers = 0, gateways = 0;
  uint64_t covered = 0, uncovered = 0;  // experts, in the published view
  uint64_t ops_outstanding = 0;
  uint64_t moves = 0, replans = 0, refused = 0;  // counters
};

class ControllerCore {
 public:
  explicit ControllerCore(ControllerOptions options);

  void Handle(MonoTime now, const ControllerEvent& event, std::vector<ControllerAction>* out);
  MonoTime next_deadline() const;  // send a Tick then; kNever: nothing to wait for

  bool settled() const { return settled_; }
  bool covered() const { return settled_ && index_.size() > 0 && view_->uncovered() == 0; }
  Epoch epoch() const { return view_->epoch; }
  control::PlacementUpdate Placement() const;  // what is published, as a snapshot
  std::vector<control::ExpertKey> Uncovered() const;
  std::vector<ControllerMember> Members() const;
  ControllerStats stats() const;

 private:
  enum class Copy : uint8_t { kAbsent, kComing, kReady, kLeaving };  // kLeaving: draining at the shard
  struct Op {
    control::CommandKind kind;
    std::vector<size_t> experts;
    MonoTime deadline;
  };
  struct Retry {
    MonoTime at = 0;
    uint32_t failures = 0;
  };
  struct ShardSlot {
    control::MemberIdentity who;
    ShardId id;
    PeerId peer = 0;          // 0: gone, in grace until `until`
    MonoTime until = kNever;  // lease or grace
    uint64_t capacity_bytes = 0;
    std::vector<Copy> copies;  // by expert index
    std::map<uint64_t, Op> ops;
    std::map<size_t, uint64_t> pending;    // expert -> op
    std::map<size_t, Epoch> retiring;      // expert -> epoch that no longer names it; 0: not published yet
    std::map<size_t, MonoTime> retire_by;  // and when to drop without acks
    std::map<size_t, Retry> retries;       // experts that failed to load or drop here
  };
  struct RouterSlot {
    control::MemberIdentity who;
    PeerId peer = 0;
    MonoTime until = kNever;
    Epoch acked, sent;
    MonoTime resend_at = kNever;
    bool ready = false, draining = false;
    std::map<size_t, double> loads;
  };
  using Actions = std::vector<ControllerAction>;

  // Membership (controller_core.cc).
  void On(const controller_event::Shard& event, Actions* out);
  void On(const controller_event::Router& event, Actions* out);
  void On(const controller_event::Gateway& event, Actions* out);
  void On(const controller_event::Closed& event, Actions* out);
  void On(const controller_event::Tick& event, Actions* out);
  std::string Admit(const std::string& role, const control::MemberIdentity& who) const;  // "": welcome
  std::string AdmitLayers(const std::vector<control::MoeLayer>& layers) const;
  void AttachShard(PeerId peer, const control::ShardReport& report, Actions* out);
  void AttachRouter(PeerId peer, const control::RouterReport& report, Actions* out);
  void LearnModel(const control::MemberIdentity& who);
  void ForgetModelIfAlone(Actions* out);
  void RaiseTerm(uint32_t above, Actions* out);
  ShardId GiveShardId(uint32_t last, Actions* out);
  void Supersede(const std::string& role, const std::string& name, uint64_t incarnation);
  void LoseShard(ShardSlot* slot, const std::string& why, Actions* out);
  void LoseRouter(const std::string& name, const std::string& why, Actions* out);
  void ApplyStates(ShardSlot* slot, const control::ShardReport& report);
  void ApplyResults(ShardSlot* slot, const control::ShardReport& report, Actions* out);
  void FailExpert(ShardSlot* slot, size_t ix);
  void Persist(Actions* out);
  void Joined(const std::string& role, const std::string& name, Actions* out);
  void Refuse(PeerId peer, const std::string& role, const control::MemberIdentity& who,
              const std::string& why, Actions* out);
  void ExpireLeases(Actions* out);
  void ClosePeer(PeerId peer, Actions* out);
  void RenameWanted(ShardId from, ShardId to);

  // Placement (controller_plan.cc).
  void Advance(Actions* out);
  bool MaySettle() const;
  MonoTime SettleDeadline() const;
  void LiftRetries();
  const ShardSlot* FindById(ShardId id) const;
  bool Wanted(size_t ix, ShardId id) const;
  bool MayGo(size_t ix, ShardId id) const;
  void Replan(Actions* out);
  void SendLoads(ShardSlot* slot, Actions* out);
  void Retire(ShardSlot* slot, Actions* out);
  bool AckedByAll(Epoch epoch) const;
  void SendOp(ShardSlot* slot, control::CommandKind kind, std::vector<size_t> experts, Actions* out);
  void SendCommand(const ShardSlot& slot, uint64_t op_id, const Op& op, Actions* out) const;
  void ResendOps(ShardSlot* slot, Actions* out);
  std::shared_ptr<const PublishedView> CurrentView() const;
  void Publish(Actions* out);
  void UpdateRouter(RouterSlot* router, Actions* out);
  void UpdateGateways(Actions* out);
  double LoadOf(size_t ix) const;

  ControllerOptions options_;
  MonoTime now_ = 0;
  uint32_t term_;
  uint64_t sequence_ = 0;
  uint32_t next_shard_ = 1;
  uint64_t next_op_ = 1;

  std::optional<control::MemberIdentity> model_;  // of the first member
  ExpertIndex index_;                             // of the first shard
  std::map<std::string, ShardSlot> shards_;       // by name
  std::map<std::string, RouterSlot> routers_;     // attached ones, by name
  std::map<PeerId, control::GatewayReport> gateways_;
  std::map<PeerId, std::pair<bool, std::string>> peers_;  // attached: (is a shard, name)
  std::set<PeerId> closing_;            // told to end: what still comes from them is not an attachment
  std::deque<std::string> superseded_;  // "role name incarnation" of processes that lost their name
  std::set<std::string> known_;         // still waited for
  std::vector<std::string> persisted_;

  bool settled_ = false;
  MonoTime first_shard_at_ = kNever, last_join_at_ = 0;
  bool replan_ = false;                                       // plan anew
  bool work_ = false;                                         // loads or drops may be due
  bool dirty_ = false;                                        // the view may have changed
  std::vector<std::vector<ShardId>> wanted_;                  // by expert index
  std::string problem_;                                       // last plan's, to log changes only
  std::shared_ptr<const PublishedView> view_;                 // the last published
  std::deque<std::shared_ptr<const PublishedView>> history_;  // bases for deltas, oldest first
  MonoTime published_at_ = 0;
  std::map<std::string, std::pair<uint64_t, Epoch>> given_;  // routers: incarnation, newest epoch sent to it
  std::map<PeerId, control::ClusterView> told_;              // gateways, what they know
  uint64_t moves_ = 0, replans_ = 0, refused_ = 0;
};

}  // namespace consilium
