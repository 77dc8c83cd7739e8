// The attention worker's compute in stages. A flight is one micro-batch: rows of many sequences that walk the
// layers together. The backend computes from where the flight stands until the next routed experts are
// needed, or to the end:
//
//   kStart    embedding, dense layers, attention, norm and gate of the first MoE layer  -> routing
//   kShared   shared experts of the layer whose routed experts are away                 -> nothing
//   kCombine  slot-ordered combine, residual, then on to the next gate or the head      -> routing, or tokens
//
// Implementations: cpu (cpu_layer_backend), ref (the same over kernels/ref) and hash
// (common/testing/hash_backend).
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/tensor/buffer_pool.h"
#include "services/attention/sampler.h"

namespace consilium {

enum class RowKind : uint8_t { kPrompt, kDecode };

// One token to compute. Rows of one sequence are adjacent and ascend by one position.
struct FlightRow {
  TokenId token = 0;
  Position position = 0;
  uint32_t sequence = 0;  // index into FlightBatch::sequences
  RowKind kind = RowKind::kDecode;
};

// The pages of a sequence; blocks[t / kKvBlockTokens] holds token t. Reserved before dispatch (I5), as the
// slot of the state that the flight leaves is.
struct FlightSequence {
  std::span<const KvBlockId> blocks;
  bool long_context = false;  // may reach BackendShape::long_context_from; fixed at its first token
  // Of models with states: what the recurrent layers keep before the first row (nothing at position 0) and
  // after the last one. state_in is only read: a flight that is abandoned can be done again, and others may
  // read it too.
  std::optional<StateId> state_in = std::nullopt, state_out = std::nullopt;
};

// A row whose logits are wanted.
struct SampleRow {
  uint32_t row = 0;
  bool score_only = false;  // prompt logprob: score `target` at this row, sample nothing
  TokenId target = 0;
  const Sampling* sampling = nullptr;
  std::span<const TokenId> prompt, generated;  // history for penalties
  std::span<const TokenId> banned;             // stop ids before min_tokens
  int top_logprobs = -1;
  SampleKey key;
};

// What a flight computes. Owned by the core and unchanged from kStart until its last stage is done; spans
// point into sequences that the core keeps alive as long.
struct FlightBatch {
  std::vector<FlightRow> rows;
  std::vector<FlightSequence> sequences;
  std::vector<SampleRow> samples;
  std::vector<KvBlockId> fresh_blocks;  // newly allocated: zeroed by kStart before use
};

enum class StageKind : uint8_t { kStart, kShared, kCombine };

struct StageJob {
  FlightId flight;
  StageKind kind = StageKind::kStart;
  const FlightBatch* batch = nullptr;
  // kCombine: the expert output of (row r, slot s) at slot_outputs[r * top_k + s], row_bytes_out bytes each.
  // Kept alive by the core until the stage is done.
  std::span<const std::byte* const> slot_outputs;
};

struct StageOut {
  absl::Status status;
  FlightId flight;
  StageKind kind = StageKind::kStart;
  bool finished = false;  // true: `samples` holds one result per FlightBatch::samples; false: routing
  LayerId layer;          // of the routing
  std::span<const uint16_t> experts;  // [rows * top_k], valid until the flight's next stage starts
  BufferRef wire_rows;                // [rows][row_bytes_in], what experts read
  std::vector<SampleResult> samples;
  uint32_t compute_us = 0;
};

// What the core must know of the model; nothing about its arithmetic.
struct BackendShape {
  uint32_t layers = 0;
  uint32_t top_k = 0;
  uint32_t experts = 0;
  uint32_t vocab = 0;
  uint32_t context = 0;  // positions
  // Not 0 (longrope): sequences that may reach this position compute with other rotary tables from their
  // first token on, so their pages are not shared with those that may not.
  uint32_t long_context_from = 0;
  uint32_t hidden = 0;                  // elements of a row in frames
  uint32_t row_bytes_in = 0;            // of a row sent to experts
  uint32_t row_bytes_out = 0;           // of one slot coming back
  uint8_t dtype_in = 0, dtype_out = 0;  // proto/WIRE.md codes
  bool shared_experts = false;          // kShared does something
  uint32_t kv_blocks = 0;               // pages in the arena
  uint32_t state_slots = 0;             // recurrent states; 0: the model keeps none
};

class LayerBackend {
 public:
  virtual ~LayerBackend() = default;
  virtual const BackendShape& shape() const = 0;
  // Starts a stage; `done` is called once, on the thread the shell gave the backend (its strand); jobs of
  // different flights may be in progress together and finish in any order. Never blocks.
  virtual void Run(const StageJob& job, std::function<void(StageOut)> done) = 0;
  // The flight will not go on (cancelled): its workspace is free again.
  virtual void Abandon(FlightId flight) = 0;
  // One KV page of all layers as bytes, for export (failover, prefix share) and import.
  virtual absl::Status ExportBlock(KvBlockId block, std::vector<std::byte>* out) = 0;
  virtual absl::Status ImportBlock(KvBlockId block, std::span<const std::byte> bytes) = 0;
  // The same for a state.
  virtual absl::Status ExportState(StateId state, std::vector<std::byte>* out) = 0;
  virtual absl::Status ImportState(StateId state, std::span<const std::byte> bytes) = 0;
};

}  // namespace consilium
