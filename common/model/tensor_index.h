// Every tensor of a model folder, and which role of the family it plays.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/families/family.h"
#include "common/model/model_files.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"

namespace consilium {

struct TensorIndex {
  std::vector<std::string> files;  // absolute paths
  std::vector<TensorInfo> tensors;
  bool by_role = false;  // GGUF: tensors carry their roles; else families know them by name
};
// Reads the headers of all weight files: DIR/model.safetensors, the shards of
// DIR/model.safetensors.index.json, the same as consolidated.*, or GGUF. Quantised values are joined with
// their scales as `config` says. NOT_FOUND when there is nothing.
absl::StatusOr<TensorIndex> ReadTensorIndex(const ModelPlace& place, const ConfigText& config);

// What the files have and no role does: Family::ignored.
struct UnusedTensors {
  uint64_t tensors = 0, bytes = 0;
};

// Claims every tensor by exactly one role: fills files, experts (without digests) and dense. `source` names
// the model in messages.
absl::StatusOr<Manifest> ClaimTensors(const ModelSpec& spec, TensorIndex index, const std::string& source,
                                      UnusedTensors* unused = nullptr);

// Every tensor a model of this description has when its files have one for each role.
absl::StatusOr<std::vector<TensorRole>> ListRoles(const ModelSpec& spec);

// The part of the model that a dense role belongs to, for sums.
ModelPart PartOf(std::string_view role);

}  // namespace consilium
