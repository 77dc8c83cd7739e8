// A whole cluster in one process under a virtual clock and a seed: controller, shards, workers, a gateway's
// client, network, crashes and restarts. A safety phase with faults, then a liveness phase without.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tests/sim/sim_model.h"

namespace consilium::sim {

struct SimOptions {
  uint32_t requests = 24;  // in the faulty phase
  uint32_t probes = 4;     // after it: these must succeed
  bool faults = true;
  bool print = false;  // every event to stderr
};
struct SimResult {
  std::vector<std::string> violations;
  uint64_t trace = 0, steps = 0, tokens = 0;
  uint32_t requests = 0, failed = 0, resumed = 0, faults = 0;
  uint64_t preemptions = 0, resends = 0, prefix_hits = 0;
};
SimResult RunSeed(uint64_t seed, SimModel* model, const SimOptions& options);

}  // namespace consilium::sim
