// Which queued call goes into the job being formed: a pure function over a snapshot. Fairness between tenants
// (deficit round robin in service time) will replace this file's rule.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/base/clock.h"
#include "common/net/expert_channel.h"

namespace consilium {

// Head of one lane's queue.
struct LaneHead {
  bool empty = true;
  uint32_t slots = 0;
  MonoTime arrived = 0;
};

struct JobLimits {
  uint32_t slots_max = 0;
  int64_t bulk_wait_max_us = 0;
};

// The lane whose head call is taken next, or nullopt when the job is full. Whole calls, at least one; first
// come first served within a lane; decode first, unless the oldest bulk call waited for bulk_wait_max_us.
inline std::optional<Lane> NextLane(MonoTime now, const LaneHead& decode, const LaneHead& bulk,
                                    uint32_t taken_slots, const JobLimits& limits) {
  const bool bulk_is_old = !bulk.empty && now - bulk.arrived >= limits.bulk_wait_max_us;
  const auto fits = [&](const LaneHead& head) {
    return !head.empty && (taken_slots == 0 || taken_slots + head.slots <= limits.slots_max);
  };
  const Lane first = bulk_is_old || decode.empty ? Lane::kBulk : Lane::kDecode;
  if (fits(first == Lane::kBulk ? bulk : decode)) return first;
  // A head that does not fit closes its lane for this job; the other lane may still fill it.
  const Lane second = first == Lane::kBulk ? Lane::kDecode : Lane::kBulk;
  if (fits(second == Lane::kBulk ? bulk : decode)) return second;
  return std::nullopt;
}

}  // namespace consilium
