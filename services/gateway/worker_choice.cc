#include "services/gateway/worker_choice.h"

#include <span>

#include "common/base/hash.h"

namespace consilium::gateway {

std::optional<size_t> ChooseWorker(const std::vector<WorkerView>& workers, uint64_t prefix_hash) {
  std::optional<size_t> least, preferred;
  uint64_t best = 0;
  for (size_t i = 0; i < workers.size(); ++i) {
    if (!workers[i].eligible) continue;
    if (!least || workers[i].load < workers[*least].load) least = i;
    const uint64_t score = Xxh3(std::as_bytes(std::span(workers[i].name)), prefix_hash);
    if (!preferred || score > best) preferred = i, best = score;
  }
  if (!preferred) return std::nullopt;
  const uint32_t low = workers[*least].load;
  return workers[*preferred].load <= low + low / 2 + kAffinitySlack ? preferred : least;
}

}  // namespace consilium::gateway
