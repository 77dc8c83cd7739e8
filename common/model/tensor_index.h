// Every tensor of a model folder, and which role of the family it plays.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/families/family.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"

namespace consilium {

struct TensorIndex {
  std::vector<std::string> files;  // absolute paths
  std::vector<TensorInfo> tensors;
};
// DIR/model.safetensors, or the shards of DIR/model.safetensors.index.json. NOT_FOUND when there is neither.
absl::StatusOr<TensorIndex> ReadTensorIndex(const std::string& dir);

// Claims every tensor by exactly one role: fills files, experts (without digests) and dense.
absl::StatusOr<Manifest> ClaimTensors(const ModelSpec& spec, TensorIndex index, const std::string& dir);

// The part each dense role belongs to, for sums.
absl::StatusOr<std::vector<TensorRole>> ListRoles(const ModelSpec& spec);

}  // namespace consilium
