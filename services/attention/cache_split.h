// The memory of --kv-mb, divided.
#pragma once
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/model/model_spec.h"

namespace consilium {

// Half of the memory for states, where the model's layers keep some, but at least kStateSlotsMin of them; the
// rest for KV pages. INVALID_ARGUMENT: there is no room for one page.
struct CacheSplit {
  uint32_t kv_blocks = 0, state_slots = 0;
};
absl::StatusOr<CacheSplit> SplitCache(const ModelSpec& spec, uint32_t kv_mb);

}  // namespace consilium
