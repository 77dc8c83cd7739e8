// The fast routing loop: which replica computes each (row, slot) of a micro-batch. Pure: snapshots in, choice
// out. The choice changes who computes, never what is computed.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/ids.h"
#include "common/placement/placement_view.h"

namespace consilium {

// What a router knows of a shard now.
struct ShardLoad {
  ShardId shard;
  bool up = false;              // a channel is open on the lane
  uint64_t rows_in_flight = 0;  // sent by this router, not yet answered
  uint32_t queued_rows = 0;     // last reported by the shard
  double us_per_row = 1;        // service time, EWMA
  double penalty_us = 0;        // memory, power and grey-failure pressure
};

struct ReplicaChoice {
  // shard of each (row, slot): [rows * top_k]; kNoShard where no replica is up.
  std::vector<ShardId> shards;
  std::vector<uint32_t> missing;  // indexes into `shards` without a replica
};
inline constexpr ShardId kNoShard{0xFFFFFFFFu};

// experts: [rows * top_k]. Earliest expected completion, ties by lowest shard id; all rows of one expert go
// to one shard, so that its weights are read once. At most 20 us for 64 rows x top-8. Reuses the vectors of
// *out.
void ChooseReplicas(const PlacementView& view, LayerId layer, std::span<const uint16_t> experts,
                    std::span<const ShardLoad> loads, ReplicaChoice* out);

}  // namespace consilium
