#include "services/controller/published_view.h"

#include <algorithm>

namespace consilium {

ExpertIndex::ExpertIndex(std::vector<control::MoeLayer> layers) : layers_(std::move(layers)) {
  std::sort(layers_.begin(), layers_.end(), [](const auto& a, const auto& b) { return a.layer < b.layer; });
  for (const control::MoeLayer& layer : layers_) {
    first_[layer.layer] = keys_.size();
    for (uint32_t e = 0; e < layer.experts; ++e) {
      keys_.push_back({layer.layer, ExpertId{static_cast<uint16_t>(e)}});
      bytes_.push_back(layer.expert_bytes);
    }
  }
}

size_t ExpertIndex::Find(LayerId layer, ExpertId expert) const {
  const auto first = first_.find(layer);
  if (first == first_.end()) return size();
  const size_t ix = first->second + expert.value;
  return ix < size() && keys_[ix].layer == layer ? ix : size();
}

uint32_t ExpertIndex::layer_bound() const { return layers_.empty() ? 0 : layers_.back().layer.value + 1u; }

uint32_t ExpertIndex::expert_bound() const {
  uint32_t bound = 0;
  for (const control::MoeLayer& layer : layers_) bound = std::max(bound, layer.experts);
  return bound;
}

size_t PublishedView::uncovered() const {
  return static_cast<size_t>(std::count_if(replicas.begin(), replicas.end(),
                                           [](const auto& shards_of) { return shards_of.empty(); }));
}

control::PlacementUpdate MakeUpdate(const ExpertIndex& index, const PublishedView* base,
                                    const PublishedView& view) {
  control::PlacementUpdate update;
  update.epoch = view.epoch;
  if (base != nullptr) update.base_epoch = base->epoch;
  update.layers = index.layer_bound();
  update.experts = index.expert_bound();
  for (const auto& [id, shard] : view.shards) {
    if (base != nullptr) {
      const auto old = base->shards.find(id);
      if (old != base->shards.end() && old->second == shard) continue;
    }
    update.shards.push_back(shard);
  }
  if (base != nullptr) {
    for (const auto& [id, shard] : base->shards) {
      if (!view.shards.contains(id)) update.gone_shards.push_back(id);
    }
  }
  for (size_t ix = 0; ix < view.replicas.size(); ++ix) {
    if (base != nullptr ? base->replicas[ix] == view.replicas[ix] : view.replicas[ix].empty()) continue;
    update.replicas.push_back({index.key(ix).layer, index.key(ix).expert, view.replicas[ix]});
  }
  return update;
}

}  // namespace consilium
