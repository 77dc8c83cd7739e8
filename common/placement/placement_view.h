// Who holds what: an immutable snapshot, swapped whole. Built by the controller's updates (control_client) or
// by hand.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace consilium {

struct PlacementShard {
  ShardId id;
  std::string name;
  std::string address;  // host:port; "" in-process
  uint64_t incarnation = 0;
};

class PlacementView {
 public:
  struct Entry {
    LayerId layer;
    ExpertId expert;
    std::vector<ShardId> shards;  // ready replicas, ascending
  };
  PlacementView() = default;
  // Entries in any order; an expert not listed has no replica.
  PlacementView(Epoch epoch, uint32_t layers, uint32_t experts, std::vector<PlacementShard> shards,
                std::vector<Entry> entries);

  Epoch epoch() const { return epoch_; }
  std::span<const PlacementShard> shards() const { return shards_; }
  const PlacementShard* FindShard(ShardId id) const;
  // Ready replicas of one expert, ascending; empty: none.
  std::span<const ShardId> replicas(LayerId layer, ExpertId expert) const;
  // Every expert of `layer` has a replica.
  bool covered(LayerId layer) const;

 private:
  Epoch epoch_;
  uint32_t layers_ = 0, experts_ = 0;
  std::vector<PlacementShard> shards_;
  std::vector<uint32_t> first_;  // [layers * experts + 1] into ids_
  std::vector<ShardId> ids_;
};

}  // namespace consilium
