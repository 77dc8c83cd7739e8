// From routing to calls and back: which rows and slots go to a shard in one frame, and where each answer
// belongs. A slot is named by its flat index row * top_k + k in the flight.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/base/ids.h"
#include "common/net/expert_channel.h"
#include "common/net/frame.h"
#include "common/tensor/buffer_pool.h"

namespace consilium {

// What a flight's calls have in common.
struct DispatchSource {
  ModelIx model;
  uint16_t class_ix = 0;
  LayerId layer;
  uint32_t top_k = 0;
  uint32_t hidden = 0;
  uint32_t row_bytes_in = 0, row_bytes_out = 0;
  frame::DtypeCode dtype_in = frame::DtypeCode::kF32, dtype_out = frame::DtypeCode::kF32;
  std::span<const uint16_t> experts;      // [rows * top_k]
  std::span<const uint32_t> request_tag;  // [rows]; equal tags: one request
  std::span<const uint8_t> priority;      // [rows]; of segments
  const std::byte* rows = nullptr;        // [rows, row_bytes_in]
};

// One CALL: its body and the flight's slots in the order of the body's slot table.
struct PlannedCall {
  ShardId shard;
  std::shared_ptr<const CallBody> body;
  BufferRef slot_list;    // flat slots, u32 each
  uint32_t requests = 0;  // distinct ones in this frame

  std::span<const uint32_t> slots() const {
    return {reinterpret_cast<const uint32_t*>(slot_list.data()), slot_list.size() / sizeof(uint32_t)};
  }
};

// Makes calls of slots. Keeps its working memory: no allocation in steady state.
class CallPlanner {
 public:
  explicit CallPlanner(BufferPool* pool) : pool_(pool) {}

  // Groups `slots` (flat, ascending) by shard_of (same length). Each row goes once per call, slots are sorted
  // by (expert, row). Calls are split by rows so that neither the CALL frame nor its whole RESULT exceeds
  // kFrameBytesMax. Appends to *out, shards ascending.
  void Plan(const DispatchSource& source, std::span<const uint32_t> slots, std::span<const ShardId> shard_of,
            std::vector<PlannedCall>* out);

 private:
  // All slots that `row` has on the shard.
  void AddRow(const DispatchSource& source, uint32_t row, std::span<const uint32_t> flat);
  bool Fits(const DispatchSource& source, size_t more_slots, bool new_segment) const;
  uint32_t DistinctRequests();
  // Appends the call of the rows so far, if any.
  void Flush(const DispatchSource& source);

  BufferPool* const pool_;
  std::vector<ShardId> shards_;  // those that have work, ascending
  std::vector<uint32_t> of_row_, tags_;
  // The call that is being made.
  ShardId shard_;
  std::vector<PlannedCall>* out_ = nullptr;
  std::vector<uint32_t> rows_;
  std::vector<frame::Slot> slots_;
  std::vector<frame::Segment> segments_;
};

// Where the expert outputs of a flight's layer are. Keeps the buffers alive.
class SlotTable {
 public:
  enum class Fill : uint8_t { kNew, kDuplicate, kMismatch };  // kMismatch: a duplicate with other bits
  void Reset(size_t slots, uint32_t row_bytes);
  void Clear();  // lets the buffers go
  Fill Put(uint32_t slot, const std::byte* value);
  void Keep(const BufferRef& buffer) { buffers_.push_back(buffer); }
  bool filled(uint32_t slot) const { return slots_[slot] != nullptr; }
  bool full() const { return missing_ == 0; }
  size_t size() const { return slots_.size(); }
  std::span<const std::byte* const> slots() const { return slots_; }

 private:
  std::vector<const std::byte*> slots_;
  std::vector<BufferRef> buffers_;
  size_t missing_ = 0;
  uint32_t row_bytes_ = 0;
};

// What applying a result did.
struct Applied {
  uint32_t fresh = 0, duplicates = 0, mismatches = 0;
};
// INVALID_ARGUMENT: ranges or payload do not fit the call; nothing was applied.
absl::Status ApplyResult(const PlannedCall& call, const CallResult& result, uint32_t row_bytes_out,
                         SlotTable* table, Applied* applied);

}  // namespace consilium
