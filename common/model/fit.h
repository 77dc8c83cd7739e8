// How many machines of a given memory hold a model. Whole experts only; a process needs a tenth and 100 MB
// more than its weights (and KV pages): docs/MODELS.md.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

// "24GiB", "80GB", "500M" (MiB), plain bytes. INVALID_ARGUMENT otherwise, and for 0.
absl::StatusOr<uint64_t> ParseByteCount(std::string_view text);

// Memory of a process that holds `bytes` of weights and pages, and the other way round (0: none).
uint64_t ProcessBytes(uint64_t bytes);
uint64_t RoomIn(uint64_t memory);

// Experts spread evenly over equal shards.
struct ShardFit {
  uint64_t memory = 0;         // of a shard
  uint64_t shards = 0;         // least that hold all; 0: a shard does not hold the largest expert
  uint64_t experts_each = 0;   // on the shard with the most bytes
  uint64_t bytes_each = 0;     // of them
  uint64_t headroom_each = 0;  // memory - ProcessBytes(bytes_each)
};
// `expert_bytes`: of each routed expert in memory, at least one. Experts of different sizes may give one
// shard in a hundred too many.
ShardFit FitShards(std::vector<uint64_t> expert_bytes, uint64_t memory);

}  // namespace consilium
