// Which attention worker takes a prompt: pure, over a snapshot.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace consilium::gateway {

struct WorkerView {
  std::string_view name;
  bool eligible = false;  // session open, not draining, identity fits
  uint32_t load = 0;      // requests of this gateway there, and the worker's own queue
};

// The worker that the prefix prefers (rendezvous hashing: stable when others come and go), unless it has more
// than kAffinitySlack + half again the load of the least loaded one; then that one. Ties: first. nullopt:
// none is eligible.
inline constexpr uint32_t kAffinitySlack = 4;
std::optional<size_t> ChooseWorker(const std::vector<WorkerView>& workers, uint64_t prefix_hash);

}  // namespace consilium::gateway
