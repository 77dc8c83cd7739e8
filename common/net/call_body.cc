#include <new>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/frame.h"
#include "common/net/frame_layout.h"

namespace consilium {
namespace {

// Takes the memory of shared CallBody objects from the frame pool: each allocation is a pooled buffer that
// holds its own handle in its first 64 bytes.
template <class T>
struct PoolAllocator {
  using value_type = T;
  BufferPool* pool;

  explicit PoolAllocator(BufferPool* p) : pool(p) {}
  template <class U>
  PoolAllocator(const PoolAllocator<U>& other) : pool(other.pool) {}  // NOLINT: rebinding

  T* allocate(size_t n) {
    static_assert(alignof(T) <= 64);
    BufferRef ref = pool->Allocate(64 + n * sizeof(T));
    std::byte* bytes = ref.data();
    new (bytes) BufferRef(std::move(ref));
    return reinterpret_cast<T*>(bytes + 64);
  }
  void deallocate(T* p, size_t) {
    auto* held = reinterpret_cast<BufferRef*>(reinterpret_cast<std::byte*>(p) - 64);
    BufferRef last = std::move(*held);
    held->~BufferRef();
  }
  template <class U>
  bool operator==(const PoolAllocator<U>& other) const {
    return pool == other.pool;
  }
};

void CheckPlan(const CallBody::Plan& plan) {
  CHECK(!plan.source_rows.empty() && plan.source_rows.size() <= kCallRowsMax);
  CHECK(!plan.slots.empty() && plan.slots.size() <= kCallSlotsMax);
  CHECK(!plan.segments.empty() && plan.hidden > 0);
  uint32_t next = 0;
  for (const frame::Segment& s : plan.segments) {
    CHECK_MSG(s.first_row == next && s.n_rows > 0, "segments must partition the rows");
    next += s.n_rows;
  }
  CHECK_MSG(next == plan.source_rows.size(), "segments must partition the rows");
  uint64_t previous = 0;
  for (const frame::Slot& s : plan.slots) {
    CHECK(s.row < plan.source_rows.size());
    const uint64_t key = (uint64_t{s.expert} << 24 | uint64_t{s.row} << 8 | s.slot) + 1;
    CHECK_MSG(key > previous, "slots must be sorted by (expert, row, slot)");
    previous = key;
  }
}

}  // namespace

std::shared_ptr<const CallBody> CallBody::Build(const Plan& plan, BufferPool* pool) {
  CheckPlan(plan);
  const size_t row_bytes = frame::RowBytes(plan.dtype_in, plan.hidden);
  const size_t tables = plan.segments.size_bytes() + plan.slots.size_bytes();
  const size_t payload = row_bytes * plan.source_rows.size();
  auto body = std::allocate_shared<CallBody>(PoolAllocator<CallBody>(pool));
  body->buffer_ = pool->Allocate(frame::kHeaderBytes + frame::Pad64(tables) + payload);
  std::byte* at = body->buffer_.data() + frame::kHeaderBytes;
  std::memcpy(at, plan.segments.data(), plan.segments.size_bytes());
  std::memcpy(at + plan.segments.size_bytes(), plan.slots.data(), plan.slots.size_bytes());
  std::memset(at + tables, 0, frame::Pad64(tables) - tables);
  std::byte* row = at + frame::Pad64(tables);
  for (uint32_t source : plan.source_rows) {
    std::memcpy(row, plan.source + size_t{source} * row_bytes, row_bytes);
    row += row_bytes;
  }
  body->n_rows_ = static_cast<uint32_t>(plan.source_rows.size());
  body->n_slots_ = static_cast<uint32_t>(plan.slots.size());
  body->layer_ = plan.layer;
  body->result_bytes_ = plan.slots.size() * frame::RowBytes(plan.dtype_out, plan.hidden);
  body->tables_hash_ = frame::TablesHash({at, frame::Pad64(tables)});

  frame::RawHeader raw;
  raw.kind = static_cast<uint8_t>(frame::Kind::kCall);
  raw.model = plan.model.value;
  raw.layer = plan.layer.value;
  raw.class_ix = plan.class_ix;
  raw.dtype_in = static_cast<uint8_t>(plan.dtype_in);
  raw.dtype_out = static_cast<uint8_t>(plan.dtype_out);
  raw.hidden = plan.hidden;
  raw.n_rows = static_cast<uint16_t>(plan.source_rows.size());
  raw.n_segments = static_cast<uint16_t>(plan.segments.size());
  raw.n_slots = static_cast<uint32_t>(plan.slots.size());
  raw.payload_bytes = static_cast<uint32_t>(payload);
  if (plan.payload_sum) {
    raw.flags = frame::kPayloadSum;
    raw.payload_sum = frame::PayloadSum({at + frame::Pad64(tables), payload});
  }
  std::memcpy(body->buffer_.data(), &raw, sizeof(raw));
  return body;
}

std::span<const frame::Slot> CallBody::slots() const {
  frame::RawHeader raw;
  std::memcpy(&raw, buffer_.data(), sizeof(raw));
  const std::byte* at = buffer_.data() + frame::kHeaderBytes + raw.n_segments * sizeof(frame::Segment);
  return {reinterpret_cast<const frame::Slot*>(at), n_slots_};
}

frame::Header CallBody::header() const {
  frame::RawHeader raw;
  std::memcpy(&raw, buffer_.data(), sizeof(raw));
  return frame::ToHeader(raw);
}

frame::WireHeader CallBody::Header(CallId call, Epoch epoch, uint32_t budget_us, uint16_t flags) const {
  frame::RawHeader raw;
  std::memcpy(&raw, buffer_.data(), sizeof(raw));
  raw.call = call.value;
  raw.epoch = epoch.value;
  raw.budget_us = budget_us;
  raw.flags |= flags;
  raw.tables_sum = frame::HeaderSum(raw, tables_hash_);
  frame::WireHeader header;
  std::memcpy(header.bytes, &raw, sizeof(raw));
  return header;
}

WireFrame CallBody::Frame(CallId call, Epoch epoch, uint32_t budget_us, uint16_t flags) const {
  return WireFrame{buffer_, true, Header(call, epoch, budget_us, flags)};
}

}  // namespace consilium
