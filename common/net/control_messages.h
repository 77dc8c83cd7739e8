// What the controller and its members say to each other (controller.proto), as plain data: the gRPC shells
// convert, the controller's core, the clients and the tests use these.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace consilium::control {

// Values as HostedExpert.State of expert.proto.
enum class HostedState : uint8_t { kAbsent = 0, kLoading = 1, kVerified = 2, kReady = 3, kDraining = 4 };

struct ExpertKey {
  LayerId layer = {};
  ExpertId expert = {};
  auto operator<=>(const ExpertKey&) const = default;
};

// Who a member is. `name` is stable over restarts, `incarnation` is random per process start.
struct MemberIdentity {
  std::string name = {};
  uint64_t incarnation = 0;
  std::string address = {};     // host:port of its gRPC server
  std::string admin = {};       // host:port of /healthz, may be empty
  std::string model_id = {};    // gateways: empty, as the three below
  std::string manifest = {};    // 32 bytes
  std::string class_name = {};  // "f32"
  uint64_t fingerprint = 0;
};

struct HostedExpert {
  LayerId layer = {};
  ExpertId expert = {};
  HostedState state = HostedState::kAbsent;
};
struct OpResult {
  uint64_t op_id = 0;
  bool ok = false;
  std::string text = {};
};
// One MoE layer of the model: experts 0 .. experts - 1, `expert_bytes` of weights each.
struct MoeLayer {
  LayerId layer = {};
  uint32_t experts = 0;
  uint64_t expert_bytes = 0;
  bool operator==(const MoeLayer&) const = default;
};

struct ShardReport {
  MemberIdentity who = {};
  uint64_t capacity_bytes = 0;        // for expert weights; 0: no limit
  std::vector<MoeLayer> layers = {};  // of the model; in full reports
  bool full = false;                  // `experts` is the whole list; else the changed ones
  std::vector<HostedExpert> experts = {};
  std::vector<OpResult> results = {};
  double load_rows_per_s = 0;
  uint32_t last_shard_id = 0;  // given to this process before; 0: none
};

enum class CommandKind : uint8_t { kNone = 0, kLoad = 1, kDrop = 2, kDrain = 3 };
struct ShardCommand {
  ShardId shard_id = {};
  Epoch epoch = {};
  uint64_t op_id = 0;  // 0: nothing to do (welcome, keep-alive). A repeated op id is the same command.
  CommandKind kind = CommandKind::kNone;
  std::vector<ExpertKey> experts = {};
  uint32_t lease_ms = 0;
  std::string refused = {};  // not empty: may not join, and why
};

struct ExpertLoad {
  LayerId layer = {};
  ExpertId expert = {};
  double rows_per_s = 0;
};
struct RouterReport {
  MemberIdentity who = {};
  Epoch acked_epoch = {};
  std::vector<ExpertLoad> loads = {};
  bool ready = false;     // may take requests
  bool draining = false;  // takes no new ones, finishes what it has
};
struct ShardInfo {
  ShardId id = {};
  std::string name = {};
  std::string address = {};
  uint64_t incarnation = 0;
  bool operator==(const ShardInfo&) const = default;
};
struct ExpertReplicas {
  LayerId layer = {};
  ExpertId expert = {};
  std::vector<ShardId> shards = {};  // ready replicas, ascending
};
struct PlacementUpdate {
  Epoch epoch = {};
  Epoch base_epoch = {};               // 0: snapshot; else the delta applies to exactly this epoch
  uint32_t layers = 0, experts = 0;    // bounds of the ids: highest + 1
  std::vector<ShardInfo> shards = {};  // snapshot: all; delta: added or changed
  std::vector<ShardId> gone_shards = {};
  std::vector<ExpertReplicas> replicas = {};  // snapshot: all; delta: changed
  uint32_t lease_ms = 0;
  std::string refused = {};
};

struct GatewayReport {
  std::string name = {};
  uint64_t incarnation = 0;
};
struct AttentionWorker {
  std::string name = {};
  std::string address = {};
  std::string model_id = {};
  std::string manifest = {};
  std::string class_name = {};
  uint64_t fingerprint = 0;
  bool ready = false;
  bool draining = false;
  bool operator==(const AttentionWorker&) const = default;
};
struct ClusterView {
  std::vector<AttentionWorker> workers = {};  // by name
  bool covered = false;                       // every expert has a ready replica
  bool operator==(const ClusterView&) const = default;
};

}  // namespace consilium::control
