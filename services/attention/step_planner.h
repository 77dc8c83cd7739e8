// Which sequences compute next, how many rows each, and in how many micro-batches. Pure: a snapshot in, a
// plan out.
//
// Order is by arrival. An older sequence that needs KV pages takes them from the youngest that hold some
// (preemption by recompute); once one is short of pages no younger one gets new ones. So the oldest always
// gets on, and with it all. Slots of recurrent states are claimed the same way, one for each sequence of a
// flight. With one flight allowed decode rows and prompt chunks share it, decode rows
// first; with more they fly apart.
#pragma once
#include <cstdint>
#include <vector>

namespace consilium {

struct SchedulerSequence {
  uint32_t tokens = 0;       // known tokens; rows wanted: tokens - computed
  uint32_t computed = 0;     // positions with KV
  uint32_t blocks = 0;       // pages held
  uint32_t sole_blocks = 0;  // of these held by nobody else
  uint32_t sole_states = 0;  // states held by nobody else
  bool decode = false;       // its one row gives the next token of a running choice
  bool in_flight = false;
};
struct SchedulerView {
  std::vector<SchedulerSequence> sequences;  // oldest first
  uint32_t available_blocks = 0;
  bool has_states = false;  // the model's layers keep some
  uint32_t available_states = 0;
  uint32_t decode_flights = 0, prompt_flights = 0;  // in the air
  double link_us = 0;     // of a call: time that is neither queue nor service at the shard, EWMA
  double compute_us = 0;  // of a call: queue and service, EWMA
};
struct StepLimits {
  uint32_t flights = 1;
  uint32_t flight_rows_max = 256;
  uint32_t prefill_chunk = 64;  // of one sequence in one flight; 0: no limit of its own
  uint32_t split_rows_min = 8;  // decode rows below which a micro-batch is not split
};
struct PlannedSequence {
  uint32_t index = 0;  // in the view
  uint32_t rows = 0;
};
struct PlannedFlight {
  bool decode_only = false;
  uint32_t rows = 0;
  std::vector<PlannedSequence> sequences;
};
struct StepPlan {
  std::vector<uint32_t> preempt;  // indexes in the view; before anything is reserved
  std::vector<PlannedFlight> flights;

  // Empties the plan; the memory of its flights is used again.
  void Clear();
  PlannedFlight& AddFlight(bool decode_only);

 private:
  std::vector<PlannedFlight> spare_;
};

// Micro-batches that decode rows should fly in: more than one only when the link, not the experts, takes the
// time (splitting makes experts read their weights again).
uint32_t DecodeFlights(const SchedulerView& view, const StepLimits& limits, uint32_t ready_rows);

// A sequence without pages is charged its whole known length, since a prefix hit may claim as much, and a
// state more, which the hit begins from. With kStateSlotsMin states the oldest still gets on.
void PlanStep(const SchedulerView& view, const StepLimits& limits, StepPlan* plan);

}  // namespace consilium
