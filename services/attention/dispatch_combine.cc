#include "services/attention/dispatch_combine.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {
namespace {

constexpr size_t Pad64(size_t n) { return (n + 63) / 64 * 64; }

size_t CallBytes(size_t rows, size_t slots, size_t segments, uint32_t row_bytes) {
  return Pad64(frame::kHeaderBytes + segments * sizeof(frame::Segment) + slots * sizeof(frame::Slot)) +
         rows * row_bytes;
}
size_t ResultBytes(size_t slots, size_t segments, uint32_t row_bytes) {
  return Pad64(frame::kHeaderBytes + sizeof(frame::Range) + sizeof(frame::Timing) + 4 * segments) +
         slots * row_bytes;
}

// Collects the rows of one call.
class CallBuilder {
 public:
  CallBuilder(const DispatchSource& source, ShardId shard, BufferPool* pool, std::vector<PlannedCall>* out)
      : source_(source), shard_(shard), pool_(pool), out_(out) {}

  // All slots that `row` has on the shard.
  void AddRow(uint32_t row, std::span<const uint32_t> flat) {
    const bool new_segment = rows_.empty() || source_.request_tag[rows_.back()] != source_.request_tag[row];
    const size_t rows = rows_.size() + 1, n_slots = slots_.size() + flat.size();
    const size_t segments = segments_.size() + new_segment;
    if (!rows_.empty() && (rows > kCallRowsMax || n_slots > kCallSlotsMax ||
                           CallBytes(rows, n_slots, segments, source_.row_bytes_in) > kFrameBytesMax ||
                           ResultBytes(n_slots, segments, source_.row_bytes_out) > kFrameBytesMax)) {
      Flush();
      AddRow(row, flat);
      return;
    }
    if (new_segment) {
      frame::Segment segment;
      segment.first_row = static_cast<uint16_t>(rows_.size());
      segment.priority = source_.priority[row];
      segment.request_tag = source_.request_tag[row];
      segments_.push_back(segment);
    }
    ++segments_.back().n_rows;
    for (uint32_t f : flat) {
      frame::Slot slot;
      slot.expert = source_.experts[f];
      slot.row = static_cast<uint16_t>(rows_.size());
      slot.slot = static_cast<uint8_t>(f % source_.top_k);
      slots_.push_back(slot);
    }
    rows_.push_back(row);
  }

  void Flush() {
    if (rows_.empty()) return;
    std::sort(slots_.begin(), slots_.end(), [](const frame::Slot& a, const frame::Slot& b) {
      return a.expert != b.expert ? a.expert < b.expert : a.row != b.row ? a.row < b.row : a.slot < b.slot;
    });
    PlannedCall call;
    call.shard = shard_;
    for (const frame::Slot& s : slots_) call.slots.push_back(rows_[s.row] * source_.top_k + s.slot);
    std::vector<uint32_t> tags;
    for (const frame::Segment& s : segments_) tags.push_back(s.request_tag);
    std::sort(tags.begin(), tags.end());
    call.requests = static_cast<uint32_t>(std::unique(tags.begin(), tags.end()) - tags.begin());
    CallBody::Plan plan;
    plan.model = source_.model;
    plan.layer = source_.layer;
    plan.class_ix = source_.class_ix;
    plan.dtype_in = source_.dtype_in;
    plan.dtype_out = source_.dtype_out;
    plan.hidden = source_.hidden;
    plan.segments = segments_;
    plan.slots = slots_;
    plan.source_rows = rows_;
    plan.source = source_.rows;
    call.body = CallBody::Build(plan, pool_);
    out_->push_back(std::move(call));
    rows_.clear();
    slots_.clear();
    segments_.clear();
  }

 private:
  const DispatchSource& source_;
  const ShardId shard_;
  BufferPool* const pool_;
  std::vector<PlannedCall>* const out_;
  std::vector<uint32_t> rows_;
  std::vector<frame::Slot> slots_;
  std::vector<frame::Segment> segments_;
};

}  // namespace

void PlanCalls(const DispatchSource& source, std::span<const uint32_t> slots,
               std::span<const ShardId> shard_of, BufferPool* pool, std::vector<PlannedCall>* out) {
  CHECK(slots.size() == shard_of.size());
  std::vector<ShardId> shards(shard_of.begin(), shard_of.end());
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  std::vector<uint32_t> of_row;
  for (ShardId shard : shards) {
    CallBuilder builder(source, shard, pool, out);
    for (size_t i = 0; i < slots.size();) {
      const uint32_t row = slots[i] / source.top_k;
      of_row.clear();
      for (; i < slots.size() && slots[i] / source.top_k == row; ++i) {
        if (shard_of[i] == shard) of_row.push_back(slots[i]);
      }
      if (!of_row.empty()) builder.AddRow(row, of_row);
    }
    builder.Flush();
  }
}

void SlotTable::Reset(size_t slots, uint32_t row_bytes) {
  buffers_.clear();
  slots_.assign(slots, nullptr);
  missing_ = slots;
  row_bytes_ = row_bytes;
}

void SlotTable::Clear() { Reset(0, 0); }

SlotTable::Fill SlotTable::Put(uint32_t slot, const std::byte* value) {
  CHECK(slot < slots_.size());
  if (slots_[slot] != nullptr) {
    return std::memcmp(slots_[slot], value, row_bytes_) == 0 ? Fill::kDuplicate : Fill::kMismatch;
  }
  slots_[slot] = value;
  --missing_;
  return Fill::kNew;
}

absl::Status ApplyResult(const PlannedCall& call, const CallResult& result, uint32_t row_bytes_out,
                         SlotTable* table, Applied* applied) {
  size_t n = 0;
  for (const frame::Range& range : result.ranges) {
    if (range.first_slot > call.slots.size() || range.n_slots > call.slots.size() - range.first_slot) {
      return InvalidArgument("result of call " + std::to_string(result.call.value) + ": slots " +
                             std::to_string(range.first_slot) + "+" + std::to_string(range.n_slots) +
                             ", expected at most " + std::to_string(call.slots.size()));
    }
    n += range.n_slots;
  }
  if (result.payload_bytes != n * row_bytes_out) {
    return InvalidArgument("result of call " + std::to_string(result.call.value) + ": expected " +
                           std::to_string(n * row_bytes_out) + " payload bytes, got " +
                           std::to_string(result.payload_bytes));
  }
  const std::byte* value = result.payload;
  for (const frame::Range& range : result.ranges) {
    for (uint32_t i = 0; i < range.n_slots; ++i, value += row_bytes_out) {
      switch (table->Put(call.slots[range.first_slot + i], value)) {
        case SlotTable::Fill::kNew:
          ++applied->fresh;
          break;
        case SlotTable::Fill::kDuplicate:
          ++applied->duplicates;
          break;
        case SlotTable::Fill::kMismatch:
          ++applied->mismatches;
          break;
      }
    }
  }
  if (applied->fresh > 0) table->Keep(result.buffer);
  return absl::OkStatus();
}

}  // namespace consilium
