// What routers are told: one immutable view per epoch, and the difference between two of them.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "common/base/ids.h"
#include "common/net/control_messages.h"

namespace consilium {

// The model's experts, numbered through: layers ascending, experts ascending.
class ExpertIndex {
 public:
  ExpertIndex() = default;
  explicit ExpertIndex(std::vector<control::MoeLayer> layers);
  size_t size() const { return keys_.size(); }
  const control::ExpertKey& key(size_t ix) const { return keys_[ix]; }
  uint64_t bytes(size_t ix) const { return bytes_[ix]; }
  // size() if the model has no such expert.
  size_t Find(LayerId layer, ExpertId expert) const;
  const std::vector<control::MoeLayer>& layers() const { return layers_; }
  uint32_t layer_bound() const;
  uint32_t expert_bound() const;

 private:
  std::vector<control::MoeLayer> layers_;
  std::map<LayerId, size_t> first_;
  std::vector<control::ExpertKey> keys_;
  std::vector<uint64_t> bytes_;
};

struct PublishedView {
  Epoch epoch;
  std::map<ShardId, control::ShardInfo> shards;
  std::vector<std::vector<ShardId>> replicas;  // by expert index, ready ones, ascending
  bool SameContent(const PublishedView& other) const {
    return shards == other.shards && replicas == other.replicas;
  }
  size_t uncovered() const;
};

// `base` null: the snapshot of `view`; else the delta from base to view.
control::PlacementUpdate MakeUpdate(const ExpertIndex& index, const PublishedView* base,
                                    const PublishedView& view);

}  // namespace consilium
