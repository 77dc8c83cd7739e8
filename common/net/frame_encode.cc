#include <algorithm>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/frame.h"
#include "common/net/frame_layout.h"

namespace consilium::frame {
namespace {

// A frame of the kind with `tables` bytes of tables and `payload` bytes of payload; tables and padding are
// zero.
BufferRef Allocate(size_t tables, size_t payload, BufferPool* pool) {
  BufferRef buffer = pool->Allocate(kHeaderBytes + Pad64(tables) + payload);
  std::memset(buffer.data(), 0, kHeaderBytes + Pad64(tables));
  return buffer;
}

// Writes the header with its sum; everything behind it must be complete.
void Seal(BufferRef* buffer, RawHeader raw) {
  const auto between =
      buffer->bytes().subspan(kHeaderBytes, buffer->size() - kHeaderBytes - raw.payload_bytes);
  raw.tables_sum = HeaderSum(raw, TablesHash(between));
  std::memcpy(buffer->data(), &raw, sizeof(raw));
}

RawHeader Bare(Kind kind) {
  RawHeader raw;
  raw.kind = static_cast<uint8_t>(kind);
  return raw;
}

template <class T>
BufferRef WithTable(RawHeader raw, const T& table, BufferPool* pool) {
  BufferRef buffer = Allocate(sizeof(T), 0, pool);
  std::memcpy(buffer.data() + kHeaderBytes, &table, sizeof(T));
  Seal(&buffer, raw);
  return buffer;
}

size_t ResultTables(uint32_t n_segments) {
  return sizeof(Range) + sizeof(Timing) + n_segments * sizeof(uint32_t);
}

}  // namespace

uint32_t SlotsPerResult(const Header& call) {
  const size_t overhead = kHeaderBytes + Pad64(ResultTables(call.n_segments));
  const size_t row = std::max<size_t>(1, RowBytes(call.dtype_out, call.hidden));
  return static_cast<uint32_t>(std::max<size_t>(1, (kFrameBytesMax - overhead) / row));
}

uint32_t RowsPerCallMax(DtypeCode dtype_in, uint32_t hidden, uint32_t slots_per_row) {
  const size_t k = std::max<uint32_t>(1, slots_per_row);
  const size_t each = RowBytes(dtype_in, hidden) + sizeof(Segment) + k * sizeof(Slot);
  const size_t rows =
      std::min({(kFrameBytesMax - 2 * kHeaderBytes) / each, size_t{kCallRowsMax}, kCallSlotsMax / k});
  return static_cast<uint32_t>(std::max<size_t>(1, rows));
}

ResultFrame BeginResult(const Header& call, Range slots, BufferPool* pool) {
  ResultFrame result;
  const size_t tables = ResultTables(call.n_segments);
  result.buffer = Allocate(tables, slots.n_slots * RowBytes(call.dtype_out, call.hidden), pool);
  result.slots = slots;
  result.payload = result.buffer.data() + kHeaderBytes + Pad64(tables);
  return result;
}

void FinishResult(ResultFrame* result, const Header& call, const Timing& timing,
                  std::span<const uint32_t> share_us, bool last) {
  CHECK(share_us.size() == call.n_segments);
  std::byte* tables = result->buffer.data() + kHeaderBytes;
  std::memcpy(tables, &result->slots, sizeof(Range));
  std::memcpy(tables + sizeof(Range), &timing, sizeof(Timing));
  std::memcpy(tables + sizeof(Range) + sizeof(Timing), share_us.data(), share_us.size_bytes());
  RawHeader raw = Bare(Kind::kResult);
  raw.call = call.call.value;
  raw.epoch = call.epoch.value;
  raw.model = call.model.value;
  raw.layer = call.layer.value;
  raw.class_ix = call.class_ix;
  raw.flags = static_cast<uint16_t>((last ? kLast : kPartial) | (call.flags & (kPayloadSum | kAudit)));
  raw.dtype_in = static_cast<uint8_t>(call.dtype_in);
  raw.dtype_out = static_cast<uint8_t>(call.dtype_out);
  raw.hidden = call.hidden;
  raw.n_segments = call.n_segments;
  raw.n_slots = 1;
  const auto payload =
      result->buffer.bytes().subspan(static_cast<size_t>(result->payload - result->buffer.data()));
  raw.payload_bytes = static_cast<uint32_t>(payload.size());
  if ((raw.flags & kPayloadSum) != 0) raw.payload_sum = PayloadSum(payload);
  Seal(&result->buffer, raw);
}

BufferRef EncodeReject(CallId call, Epoch epoch, RejectCode code, uint32_t arg, std::string_view text,
                       BufferPool* pool) {
  text = text.substr(0, kRejectTextBytesMax);
  BufferRef buffer = Allocate(sizeof(RawReject) + text.size(), 0, pool);
  const RawReject reject{static_cast<uint16_t>(code), static_cast<uint16_t>(text.size()), arg};
  std::memcpy(buffer.data() + kHeaderBytes, &reject, sizeof(reject));
  if (!text.empty()) std::memcpy(buffer.data() + kHeaderBytes + sizeof(reject), text.data(), text.size());
  RawHeader raw = Bare(Kind::kReject);
  raw.call = call.value;
  raw.epoch = epoch.value;
  Seal(&buffer, raw);
  return buffer;
}

BufferRef EncodeCancel(CallId call, BufferPool* pool) {
  BufferRef buffer = Allocate(0, 0, pool);
  RawHeader raw = Bare(Kind::kCancel);
  raw.call = call.value;
  Seal(&buffer, raw);
  return buffer;
}

BufferRef EncodeCredit(uint64_t rows, uint64_t bytes, BufferPool* pool) {
  return WithTable(Bare(Kind::kCredit), RawCredit{rows, bytes}, pool);
}

BufferRef EncodeHeartbeat(const Timing& timing, BufferPool* pool) {
  return WithTable(Bare(Kind::kHeartbeat), timing, pool);
}

BufferRef EncodePayload(Kind kind, std::string_view payload, BufferPool* pool) {
  BufferRef buffer = Allocate(0, payload.size(), pool);
  if (!payload.empty()) std::memcpy(buffer.data() + kHeaderBytes, payload.data(), payload.size());
  RawHeader raw = Bare(kind);
  raw.flags = kPayloadSum;
  raw.payload_bytes = static_cast<uint32_t>(payload.size());
  raw.payload_sum = PayloadSum(buffer.bytes().subspan(kHeaderBytes));
  Seal(&buffer, raw);
  return buffer;
}

BufferRef EncodeBare(Kind kind, BufferPool* pool) {
  BufferRef buffer = Allocate(0, 0, pool);
  Seal(&buffer, Bare(kind));
  return buffer;
}

}  // namespace consilium::frame
