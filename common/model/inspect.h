// What `consilium inspect` prints: a model in figures. Reads headers only.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

struct InspectOptions {
  bool json = false;                           // one JSON object instead of text for people
  std::vector<std::string> shard_memory = {};  // sizes of expert shards (ParseByteCount); empty: 24, 48 and
                                               // 80 GiB
  uint32_t tokens = 0;                         // held in the KV cache; 0: the model's context
  std::string weights_as = "stored";           // of routed experts in memory: NumericsFlags
};

// `path`: a folder or a GGUF file.
absl::StatusOr<std::string> DescribeModel(const std::string& path, const InspectOptions& options = {});

}  // namespace consilium
