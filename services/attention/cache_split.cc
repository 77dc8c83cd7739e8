#include "services/attention/cache_split.h"

#include <algorithm>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {

absl::StatusOr<CacheSplit> SplitCache(const ModelSpec& spec, uint32_t kv_mb) {
  constexpr uint64_t kMost = uint64_t{1} << 30;
  const uint64_t bytes = uint64_t{kv_mb} << 20, page = spec.kv_page_bytes(), state = spec.state_bytes();
  const uint64_t slots = state == 0 ? 0 : std::clamp<uint64_t>(bytes / 2 / state, kStateSlotsMin, kMost);
  if (bytes >= slots * state + page) {
    return CacheSplit{static_cast<uint32_t>(std::min((bytes - slots * state) / page, kMost)),
                      static_cast<uint32_t>(slots)};
  }
  std::string needs = "one KV page of this model takes " + std::to_string(page) + " bytes";
  if (slots > 0) {
    needs += ", and its states, at least " + std::to_string(kStateSlotsMin) + ", " + std::to_string(state) +
             " bytes each";
  }
  return InvalidArgument("--kv-mb " + std::to_string(kv_mb) + ": " + needs);
}

}  // namespace consilium
