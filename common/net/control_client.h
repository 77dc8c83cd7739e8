// The members' side of the controller: one long-lived stream each for shards, routers (attention workers) and
// gateways.
//
// All three dial the controller, reconnect with a back-off of 50 ms to 1 s for ever, and keep the last state
// while it is away: nothing is taken back from the user when the controller dies. They report by themselves
// at a third of the lease. Setters are thread-safe and never block. Sink methods run on the attachment's own
// thread, one at a time, must not block and must not destroy the attachment (users post to their strand);
// calling its setters from them is fine. No sink method runs after the destructor returned.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/net/control_messages.h"
#include "common/placement/placement_view.h"

namespace consilium {

// Connection news, equal for all roles. Log on change only: OnDown comes once per lost stream, not per
// attempt.
class ControlSink {
 public:
  virtual ~ControlSink() = default;
  virtual void OnUp() {}  // the controller answered on a new stream
  // The stream broke (UNAVAILABLE), or the controller refused this member (FAILED_PRECONDITION, with its
  // reason: other model, class or fingerprint, or the name is taken). Attempts go on in both cases.
  virtual void OnDown(const absl::Status& /*status*/) {}
};

struct ControlClientOptions {
  std::string controller;  // host:port
  uint32_t backoff_min_ms = 50;
  uint32_t backoff_max_ms = 1000;
};

// An expert shard: says what it hosts, gets LOAD, DROP and DRAIN.
class ShardAttachment {
 public:
  class Sink : public ControlSink {
   public:
    // The id this shard goes by in placements; first of all on each new stream, and when it changes.
    virtual void OnShardId(ShardId id) = 0;
    // kLoad, kDrop or kDrain. At least once: a command may come again (same op id, or a new one for the same
    // experts after a new stream); loading what is ready and dropping what is absent succeed. Answer with
    // Report.
    virtual void OnCommand(const control::ShardCommand& command) = 0;
  };
  virtual ~ShardAttachment() = default;
  // Expert states that changed; `results` of finished ops (may be empty). The attachment remembers all states
  // and sends the whole list on each new stream, so nothing is lost while the controller is away.
  virtual void Report(const std::vector<control::HostedExpert>& changed,
                      const std::vector<control::OpResult>& results) = 0;
  virtual void SetLoad(double rows_per_s) = 0;
};
// `layers`: the MoE layers of the model; `capacity_bytes` for expert weights, 0: no limit. `sink` outlives
// the result.
std::unique_ptr<ShardAttachment> AttachShard(const ControlClientOptions& options,
                                             const control::MemberIdentity& who,
                                             std::vector<control::MoeLayer> layers, uint64_t capacity_bytes,
                                             ShardAttachment::Sink* sink);

// An attention worker: says that it is there and which epoch it uses, gets placements.
class RouterAttachment {
 public:
  class Sink : public ControlSink {
   public:
    // A newer placement, whole (deltas are applied by the attachment). Epochs only rise. Shard ids are never
    // given to another process: a restarted shard appears under a new id. Swap it in, then call Ack.
    virtual void OnPlacement(std::shared_ptr<const PlacementView> view) = 0;
  };
  virtual ~RouterAttachment() = default;
  // Calls are now routed by this epoch. Until then the controller keeps replicas that older epochs name.
  virtual void Ack(Epoch epoch) = 0;
  virtual void SetReady(bool ready) = 0;  // false at first: may take requests from gateways
  virtual void SetDraining() = 0;         // takes no new requests, finishes what it has; for good
  virtual void SetLoads(std::vector<control::ExpertLoad> loads) = 0;  // goes with the next periodic report
};
std::unique_ptr<RouterAttachment> AttachRouter(const ControlClientOptions& options,
                                               const control::MemberIdentity& who,
                                               RouterAttachment::Sink* sink);

// A gateway: gets the attention workers.
class GatewayAttachment {
 public:
  class Sink : public ControlSink {
   public:
    virtual void OnCluster(const control::ClusterView& view) = 0;  // on each new stream and on each change
  };
  virtual ~GatewayAttachment() = default;
};
std::unique_ptr<GatewayAttachment> AttachGateway(const ControlClientOptions& options, std::string_view name,
                                                 uint64_t incarnation, GatewayAttachment::Sink* sink);

// For the CLI: everyone the controller knows, shards in their grace too. Blocks up to `timeout_ms`.
struct MemberInfo {
  std::string role;  // expert, attention, gateway
  std::string name;
  std::string address;  // "" for gateways
  std::string state;    // ready, loading, gone, starting, draining, attached
};
absl::StatusOr<std::vector<MemberInfo>> ListMembers(const std::string& controller, uint32_t timeout_ms);

}  // namespace consilium
