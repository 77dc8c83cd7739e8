#include "common/placement/placement_view.h"

#include <algorithm>

namespace consilium {

PlacementView::PlacementView(Epoch epoch, uint32_t layers, uint32_t experts,
                             std::vector<PlacementShard> shards, std::vector<Entry> entries)
    : epoch_(epoch), layers_(layers), experts_(experts), shards_(std::move(shards)) {
  std::sort(shards_.begin(), shards_.end(),
            [](const PlacementShard& a, const PlacementShard& b) { return a.id < b.id; });
  std::vector<std::vector<ShardId>> by_expert(size_t{layers} * experts);
  for (const Entry& entry : entries) {
    if (entry.layer.value >= layers || entry.expert.value >= experts) continue;  // of a model we do not run
    auto& ids = by_expert[size_t{entry.layer.value} * experts + entry.expert.value];
    for (ShardId id : entry.shards) {
      if (FindShard(id) != nullptr) ids.push_back(id);
    }
  }
  first_.reserve(by_expert.size() + 1);
  for (auto& ids : by_expert) {
    first_.push_back(static_cast<uint32_t>(ids_.size()));
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }
  first_.push_back(static_cast<uint32_t>(ids_.size()));
}

const PlacementShard* PlacementView::FindShard(ShardId id) const {
  auto it = std::lower_bound(shards_.begin(), shards_.end(), id,
                             [](const PlacementShard& s, ShardId wanted) { return s.id < wanted; });
  return it != shards_.end() && it->id == id ? &*it : nullptr;
}

std::span<const ShardId> PlacementView::replicas(LayerId layer, ExpertId expert) const {
  if (layer.value >= layers_ || expert.value >= experts_) return {};
  const size_t ix = size_t{layer.value} * experts_ + expert.value;
  return std::span<const ShardId>(ids_).subspan(first_[ix], first_[ix + 1] - first_[ix]);
}

bool PlacementView::covered(LayerId layer) const {
  if (layer.value >= layers_) return false;
  for (uint32_t e = 0; e < experts_; ++e) {
    if (replicas(layer, ExpertId(static_cast<uint16_t>(e))).empty()) return false;
  }
  return true;
}

}  // namespace consilium
