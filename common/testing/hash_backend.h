// The `hash` implementation of both compute seams: an activation is one u64 per row (row_bytes 8, dtype code
// 5). The arithmetic is mixing, so that any lost, doubled, swapped or misrouted row, slot, page or position
// changes the tokens:
//   attention at p   order-sensitive mix over the KV words of positions 0..p, read from the paged arena by
//                    block ids
//   recurrence at p  one word a layer and state: mix of the word before p, the activation and p; in odd
//                    layers of a recurrent model, in the place of attention
//   gate             pseudo-random top-k distinct experts from the activation
//   expert(x)        mix(layer, expert, x)
//   combine          order-sensitive mix in slot order
// A hash worker proves plumbing; it says nothing about arithmetic.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "services/attention/layer_backend.h"
#include "services/expert/expert_backend.h"

namespace consilium {

// How deferred work is run: the backend hands over a closure and the simulator calls it after `work_rows`
// rows' time. Null: inline (the closure runs before Run returns).
using HashExecutor = std::function<void(uint64_t work_rows, std::function<void()> work)>;

struct HashModel {
  uint32_t layers = 4;  // layer 0 is dense, the others are MoE
  uint32_t experts = 8;
  uint32_t top_k = 2;
  uint32_t vocab = 1000;
  uint32_t context = 512;
  uint32_t kv_blocks = 64;
  bool shared_experts = true;
  bool recurrent = false;
  uint32_t state_slots = 64;  // of a recurrent model
  uint64_t salt = 1;          // another model
};
BackendShape HashShape(const HashModel& model);

// expert(x) of the hash class.
uint64_t HashExpert(LayerId layer, ExpertId expert, uint64_t x);

class HashLayerBackend : public LayerBackend {
 public:
  // `pool` outlives the backend.
  HashLayerBackend(const HashModel& model, BufferPool* pool, HashExecutor executor = nullptr);
  const BackendShape& shape() const override { return shape_; }
  void Run(const StageJob& job, std::function<void(StageOut)> done) override;
  void Abandon(FlightId flight) override;
  absl::Status ExportBlock(KvBlockId block, std::vector<std::byte>* out) override;
  absl::Status ImportBlock(KvBlockId block, std::span<const std::byte> bytes) override;
  absl::Status ExportState(StateId state, std::vector<std::byte>* out) override;
  absl::Status ImportState(StateId state, std::span<const std::byte> bytes) override;
  size_t live_flights() const { return flights_.size(); }

 private:
  struct Flight {
    std::vector<uint64_t> x;       // activation of each row
    std::vector<uint64_t> shared;  // shared experts' part
    std::vector<uint16_t> experts;
    BufferRef wire;
    uint32_t layer = 0;
    bool shared_done = false;
  };
  StageOut Compute(const StageJob& job);
  // Dense layers and attention from flight->layer on, until the next gate or the samples.
  void Advance(const FlightBatch& batch, Flight* flight, StageOut* out);
  void Attend(const FlightBatch& batch, uint32_t layer, Flight* flight);
  void Recur(const FlightBatch& batch, uint32_t layer, Flight* flight);
  void Gate(Flight* flight) const;
  SampleResult Head(const SampleRow& sample, uint64_t h) const;
  uint64_t& Kv(KvBlockId block, uint32_t layer, uint32_t offset);
  uint64_t& State(StateId state, uint32_t layer);
  absl::Status CheckBytes(const char* what, uint32_t id, uint32_t count, size_t words, size_t bytes) const;

  const HashModel model_;
  const BackendShape shape_;
  BufferPool* const pool_;
  const HashExecutor executor_;
  std::vector<uint64_t> arena_;   // [kv_blocks][layers][kKvBlockTokens]
  std::vector<uint64_t> states_;  // [state_slots][layers]
  std::map<FlightId, Flight> flights_;
};

class HashExpertBackend : public ExpertBackend {
 public:
  explicit HashExpertBackend(HashExecutor executor = nullptr) : executor_(std::move(executor)) {}
  uint32_t row_bytes_in() const override { return 8; }
  uint32_t row_bytes_out() const override { return 8; }
  absl::StatusOr<ExpertHandle> Load(const ExpertEntry& entry, ModelStore* store) override;
  void Drop(ExpertHandle expert) override;
  uint64_t loaded_bytes() const override { return 8 * loaded_.size(); }
  void Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) override;

 private:
  const HashExecutor executor_;
  std::map<ExpertHandle, std::pair<LayerId, ExpertId>> loaded_;
  ExpertHandle next_ = 1;
};

}  // namespace consilium
