#include "common/placement/replica_choice.h"

#include <algorithm>

namespace consilium {
namespace {

constexpr uint32_t kUnseen = 0xFFFFFFFFu;

const ShardLoad* FindLoad(std::span<const ShardLoad> loads, ShardId id) {
  for (const ShardLoad& load : loads) {
    if (load.shard == id) return &load;
  }
  return nullptr;
}

}  // namespace

void ChooseReplicas(const PlacementView& view, LayerId layer, std::span<const uint16_t> experts,
                    std::span<const ShardLoad> loads, ReplicaChoice* out) {
  out->shards.assign(experts.size(), kNoShard);
  out->missing.clear();
  // Rows per expert, experts in order of first use, so that equal input gives equal choices. Kept per thread,
  // since the hot path must not allocate.
  thread_local std::vector<uint32_t> rows_of, order;
  thread_local std::vector<ShardId> chosen;
  thread_local std::vector<uint64_t> added;  // rows given to loads[i] in this choice
  const uint32_t experts_max = experts.empty() ? 0 : 1u + *std::max_element(experts.begin(), experts.end());
  rows_of.assign(experts_max, 0);
  chosen.assign(experts_max, kNoShard);
  order.clear();
  added.assign(loads.size(), 0);
  for (uint16_t e : experts) {
    if (rows_of[e]++ == 0) order.push_back(e);
  }
  // Heaviest first: the usual greedy bound for makespan; ties by expert id.
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return rows_of[a] != rows_of[b] ? rows_of[a] > rows_of[b] : a < b;
  });
  for (uint32_t e : order) {
    double best = 0;
    size_t best_ix = kUnseen;
    for (ShardId id : view.replicas(layer, ExpertId(static_cast<uint16_t>(e)))) {
      const ShardLoad* load = FindLoad(loads, id);
      if (load == nullptr || !load->up) continue;
      const size_t ix = static_cast<size_t>(load - loads.data());
      const double rows =
          static_cast<double>(load->rows_in_flight + load->queued_rows + added[ix] + rows_of[e]);
      const double finish_us = rows * load->us_per_row + load->penalty_us;
      if (best_ix == kUnseen || finish_us < best) {  // replicas ascend: ties stay with the lowest id
        best = finish_us;
        best_ix = ix;
      }
    }
    if (best_ix == kUnseen) continue;
    chosen[e] = loads[best_ix].shard;
    added[best_ix] += rows_of[e];
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    out->shards[i] = chosen[experts[i]];
    if (out->shards[i] == kNoShard) out->missing.push_back(static_cast<uint32_t>(i));
  }
}

}  // namespace consilium
