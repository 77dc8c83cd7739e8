#include "common/net/placement_fold.h"

#include "common/base/status.h"

namespace consilium {

absl::StatusOr<std::shared_ptr<const PlacementView>> PlacementFold::Apply(
    const control::PlacementUpdate& update) {
  if (update.epoch <= epoch_) return std::shared_ptr<const PlacementView>();
  if (update.base_epoch.value != 0 && update.base_epoch != epoch_) {
    return FailedPrecondition("placement delta starts from epoch " + std::to_string(update.base_epoch.value) +
                              ", this view is at " + std::to_string(epoch_.value));
  }
  if (update.base_epoch.value == 0) {
    shards_.clear();
    replicas_.clear();
  }
  epoch_ = update.epoch;
  layers_ = update.layers;
  experts_ = update.experts;
  for (const control::ShardInfo& shard : update.shards) shards_[shard.id] = shard;
  for (const ShardId gone : update.gone_shards) shards_.erase(gone);
  for (const control::ExpertReplicas& entry : update.replicas) {
    if (entry.layer.value >= layers_ || entry.expert.value >= experts_)
      continue;  // out of the update's own bounds
    replicas_[{entry.layer, entry.expert}] = entry.shards;
  }
  return Build();
}

std::shared_ptr<const PlacementView> PlacementFold::Build() const {
  std::vector<PlacementShard> shards;
  for (const auto& [id, shard] : shards_)
    shards.push_back({id, shard.name, shard.address, shard.incarnation});
  std::vector<PlacementView::Entry> entries;
  for (const auto& [key, ids] : replicas_) entries.push_back({key.layer, key.expert, ids});
  return std::make_shared<PlacementView>(epoch_, layers_, experts_, std::move(shards), std::move(entries));
}

}  // namespace consilium
