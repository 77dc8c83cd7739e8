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

}  // namespace

void CallPlanner::Plan(const DispatchSource& source, std::span<const uint32_t> slots,
                       std::span<const ShardId> shard_of, std::vector<PlannedCall>* out) {
  CHECK(slots.size() == shard_of.size());
  out_ = out;
  shards_.assign(shard_of.begin(), shard_of.end());
  std::sort(shards_.begin(), shards_.end());
  shards_.erase(std::unique(shards_.begin(), shards_.end()), shards_.end());
  for (ShardId shard : shards_) {
    shard_ = shard;
    for (size_t i = 0; i < slots.size();) {
      const uint32_t row = slots[i] / source.top_k;
      of_row_.clear();
      for (; i < slots.size() && slots[i] / source.top_k == row; ++i) {
        if (shard_of[i] == shard) of_row_.push_back(slots[i]);
      }
      if (!of_row_.empty()) AddRow(source, row, of_row_);
    }
    Flush(source);
  }
}

bool CallPlanner::Fits(const DispatchSource& source, size_t more_slots, bool new_segment) const {
  const size_t rows = rows_.size() + 1, n_slots = slots_.size() + more_slots;
  const size_t segments = segments_.size() + new_segment;
  return rows <= kCallRowsMax && n_slots <= kCallSlotsMax &&
         CallBytes(rows, n_slots, segments, source.row_bytes_in) <= kFrameBytesMax &&
         ResultBytes(n_slots, segments, source.row_bytes_out) <= kFrameBytesMax;
}

void CallPlanner::AddRow(const DispatchSource& source, uint32_t row, std::span<const uint32_t> flat) {
  bool new_segment = rows_.empty() || source.request_tag[rows_.back()] != source.request_tag[row];
  if (!rows_.empty() && !Fits(source, flat.size(), new_segment)) {
    Flush(source);
    new_segment = true;
  }
  if (new_segment) {
    frame::Segment segment;
    segment.first_row = static_cast<uint16_t>(rows_.size());
    segment.priority = source.priority[row];
    segment.request_tag = source.request_tag[row];
    segments_.push_back(segment);
  }
  ++segments_.back().n_rows;
  for (uint32_t f : flat) {
    frame::Slot slot;
    slot.expert = source.experts[f];
    slot.row = static_cast<uint16_t>(rows_.size());
    slot.slot = static_cast<uint8_t>(f % source.top_k);
    slots_.push_back(slot);
  }
  rows_.push_back(row);
}

uint32_t CallPlanner::DistinctRequests() {
  tags_.clear();
  for (const frame::Segment& s : segments_) tags_.push_back(s.request_tag);
  std::sort(tags_.begin(), tags_.end());
  return static_cast<uint32_t>(std::unique(tags_.begin(), tags_.end()) - tags_.begin());
}

void CallPlanner::Flush(const DispatchSource& source) {
  if (rows_.empty()) return;
  std::sort(slots_.begin(), slots_.end(), [](const frame::Slot& a, const frame::Slot& b) {
    return a.expert != b.expert ? a.expert < b.expert : a.row != b.row ? a.row < b.row : a.slot < b.slot;
  });
  PlannedCall call;
  call.shard = shard_;
  call.slot_list = pool_->Allocate(slots_.size() * sizeof(uint32_t));
  auto* flat = reinterpret_cast<uint32_t*>(call.slot_list.data());
  for (const frame::Slot& s : slots_) *flat++ = rows_[s.row] * source.top_k + s.slot;
  call.requests = DistinctRequests();
  CallBody::Plan plan;
  plan.model = source.model;
  plan.layer = source.layer;
  plan.class_ix = source.class_ix;
  plan.dtype_in = source.dtype_in;
  plan.dtype_out = source.dtype_out;
  plan.hidden = source.hidden;
  plan.segments = segments_;
  plan.slots = slots_;
  plan.source_rows = rows_;
  plan.source = source.rows;
  call.body = CallBody::Build(plan, pool_);
  out_->push_back(std::move(call));
  rows_.clear();
  slots_.clear();
  segments_.clear();
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
  const std::span<const uint32_t> slots = call.slots();
  size_t n = 0;
  for (const frame::Range& range : result.ranges) {
    if (range.first_slot > slots.size() || range.n_slots > slots.size() - range.first_slot) {
      return InvalidArgument("result of call " + std::to_string(result.call.value) + ": slots " +
                             std::to_string(range.first_slot) + "+" + std::to_string(range.n_slots) +
                             ", expected at most " + std::to_string(slots.size()));
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
      switch (table->Put(slots[range.first_slot + i], value)) {
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
