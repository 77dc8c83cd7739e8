// Placement updates of the controller, folded into immutable views. Pure.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/control_messages.h"
#include "common/placement/placement_view.h"

namespace consilium {

class PlacementFold {
 public:
  // A snapshot replaces all, a delta must be based on epoch(). Result nullptr: not newer than epoch(),
  // ignored. FAILED_PRECONDITION: the delta has another base; ask for a snapshot. Nothing is changed on an
  // error.
  absl::StatusOr<std::shared_ptr<const PlacementView>> Apply(const control::PlacementUpdate& update);
  Epoch epoch() const { return epoch_; }

 private:
  std::shared_ptr<const PlacementView> Build() const;

  Epoch epoch_;
  uint32_t layers_ = 0, experts_ = 0;
  std::map<ShardId, control::ShardInfo> shards_;
  std::map<control::ExpertKey, std::vector<ShardId>> replicas_;
};

}  // namespace consilium
