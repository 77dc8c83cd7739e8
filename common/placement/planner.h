// The slow loop's decision: which shards should hold which experts. Pure and deterministic: a snapshot in, an
// assignment out; nothing is remembered between calls. How moves are carried out (load before drop) is the
// controller's business.
//
// Balance: a copy of an expert weighs (load + mean load) / (2 x mean load x copies), so loads count and,
// while they are unknown or equal, the number of experts does. A shard's fill is its weight divided by its
// speed.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"

namespace consilium {

struct PlanShard {
  ShardId id;
  std::string name;             // order of ties, so that joining order does not matter
  uint64_t capacity_bytes = 0;  // 0: no limit
  double speed = 1;             // relative, > 0
  std::string domain;           // failure domain; "": the shard is its own
};

// A copy that exists or is being made.
struct PlanCopy {
  ShardId shard;
  bool ready = false;
  bool wanted = false;  // by the last plan; kept in preference
};

struct PlanExpert {
  LayerId layer;
  ExpertId expert;
  uint64_t bytes = 0;
  double load = 0;  // rows per second over all copies, >= 0
  std::vector<PlanCopy> copies;
  std::vector<ShardId> barred = {};  // shards that get no copy now (loading it failed there)
};

struct PlanOptions {
  uint32_t replicas = 1;  // wanted copies of each expert; on fewer shards: one on each
  double slack = 0.1;     // distance from the mean fill that unequal loads may have before experts move
  uint64_t rebalance_bytes_max = 0;  // bytes moved only for balance in one plan; 0: no limit
};

struct Plan {
  std::vector<std::vector<ShardId>> shards;  // wanted shards of each expert, ascending; by input order
  uint32_t loads = 0;                        // copies to make: wanted where none is
  uint32_t surplus = 0;                      // copies to drop in the end: there, but not wanted
  // RESOURCE_EXHAUSTED: how many experts found no place, with bytes needed and there; the rest is planned all
  // the same.
  absl::Status fit;
  uint32_t short_copies = 0;  // copies beyond the first for which no capacity was left
};

// Missing copies first (hottest first, first copies before second ones, onto the least filled shard,
// preferably in a failure domain of its own), then moves from the fullest to the least filled shards while
// that lowers the highest fill. Copies on shards not listed do not exist. A first copy takes the room of
// another expert's second one if it must.
Plan MakePlan(std::span<const PlanShard> shards, std::span<const PlanExpert> experts,
              const PlanOptions& options);

// The copy on `shard` may go now: it is not wanted, and every wanted copy is ready (so never the last ready
// one).
bool MayDrop(const PlanExpert& expert, std::span<const ShardId> wanted, ShardId shard);

}  // namespace consilium
