#include <string>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/frame.h"
#include "common/net/frame_layout.h"

namespace consilium {

std::span<const std::byte> WireFrame::head() const {
  if (has_header) return {header.bytes, frame::kHeaderBytes};
  return buffer.bytes().first(frame::kHeaderBytes);
}

namespace frame {
namespace {

constexpr uint16_t kCallFlags = kPayloadSum | kHedge | kRetry | kAudit;
constexpr uint16_t kResultFlags = kPayloadSum | kPartial | kLast | kAudit;
constexpr size_t kHeaderBytesMax = 1024;

absl::Status Bad(size_t offset, std::string_view what, uint64_t expected, uint64_t got) {
  return InvalidArgument("BAD_FRAME at offset " + std::to_string(offset) + ": " + std::string(what) +
                         ", expected " + std::to_string(expected) + ", got " + std::to_string(got));
}

absl::Status BadText(size_t offset, std::string_view what) {
  return InvalidArgument("BAD_FRAME at offset " + std::to_string(offset) + ": " + std::string(what));
}

// One frame being decoded. Offsets in errors count from the first byte of the frame.
struct Parser {
  RawHeader raw;
  std::span<const std::byte> tables;  // with padding
  size_t tables_offset = 0;
  View* view;

  template <class T>
  std::span<const T> Table(size_t offset, size_t n) const {
    return {reinterpret_cast<const T*>(tables.data() + offset), n};
  }
  size_t At(size_t table_offset) const { return tables_offset + table_offset; }

  // The tables take `bytes` and zeros up to the next multiple of 64.
  absl::Status CheckTables(size_t bytes) const {
    if (tables.size() != Pad64(bytes)) return Bad(48, "bytes of tables", Pad64(bytes), tables.size());
    for (size_t i = bytes; i < tables.size(); ++i) {
      if (tables[i] != std::byte{0}) return BadText(At(i), "padding is not zero");
    }
    return absl::OkStatus();
  }

  // Fields that have no meaning for the kind are zero.
  absl::Status CheckUnused(bool call, bool rows, bool segments, bool payload) const {
    if (!call && raw.call != 0) return Bad(8, "call_id", 0, raw.call);
    if (!rows) {
      if (raw.epoch != 0 && raw.kind != static_cast<uint8_t>(Kind::kReject))
        return Bad(16, "epoch", 0, raw.epoch);
      if (raw.model != 0) return Bad(24, "model_ix", 0, raw.model);
      if (raw.layer != 0) return Bad(28, "layer", 0, raw.layer);
      if (raw.class_ix != 0) return Bad(30, "class_ix", 0, raw.class_ix);
      if (raw.dtype_in != 0) return Bad(38, "dtype_in", 0, raw.dtype_in);
      if (raw.dtype_out != 0) return Bad(39, "dtype_out", 0, raw.dtype_out);
      if (raw.hidden != 0) return Bad(40, "hidden", 0, raw.hidden);
      if (raw.n_slots != 0) return Bad(48, "n_slots", 0, raw.n_slots);
    }
    if (!segments && raw.n_segments != 0) return Bad(46, "n_segments", 0, raw.n_segments);
    if (!payload && raw.payload_bytes != 0) return Bad(52, "payload_bytes", 0, raw.payload_bytes);
    return absl::OkStatus();
  }

  absl::Status CheckFlags(uint16_t allowed) const {
    if ((raw.flags & ~allowed) != 0) return Bad(36, "flags that may be set", allowed, raw.flags);
    return absl::OkStatus();
  }

  absl::Status Call() const;
  absl::Status CallSegments() const;
  absl::Status CallSlots() const;
  absl::Status Result() const;
  absl::Status RejectTable() const;
  absl::Status TimingTable(size_t offset) const;
  absl::Status ByKind() const;
};

bool IsElementType(uint8_t code) {
  return code >= static_cast<uint8_t>(DtypeCode::kBf16) && code <= static_cast<uint8_t>(DtypeCode::kU64);
}

absl::Status Parser::Call() const {
  RETURN_IF_ERROR(CheckFlags(kCallFlags));
  if (raw.budget_us == 0) return BadText(32, "budget_us is 0");
  if (!IsElementType(raw.dtype_in)) return Bad(38, "dtype_in of 1..5", 1, raw.dtype_in);
  if (!IsElementType(raw.dtype_out)) return Bad(39, "dtype_out of 1..5", 1, raw.dtype_out);
  if (raw.hidden == 0) return BadText(40, "hidden is 0");
  if (raw.n_rows == 0 || raw.n_rows > kCallRowsMax)
    return Bad(44, "n_rows from 1 to", kCallRowsMax, raw.n_rows);
  if (raw.n_segments == 0 || raw.n_segments > raw.n_rows)
    return Bad(46, "n_segments from 1 to", raw.n_rows, raw.n_segments);
  if (raw.n_slots == 0 || raw.n_slots > kCallSlotsMax)
    return Bad(48, "n_slots from 1 to", kCallSlotsMax, raw.n_slots);
  const uint64_t payload = uint64_t{raw.n_rows} * RowBytes(view->header.dtype_in, raw.hidden);
  if (raw.payload_bytes != payload) return Bad(52, "payload_bytes", payload, raw.payload_bytes);
  const size_t segments = raw.n_segments * sizeof(Segment);
  RETURN_IF_ERROR(CheckTables(segments + raw.n_slots * sizeof(Slot)));
  view->segments = Table<Segment>(0, raw.n_segments);
  view->slots = Table<Slot>(segments, raw.n_slots);
  RETURN_IF_ERROR(CallSegments());
  return CallSlots();
}

// Segments partition the rows in order.
absl::Status Parser::CallSegments() const {
  uint32_t next = 0;
  for (size_t i = 0; i < view->segments.size(); ++i) {
    const Segment& s = view->segments[i];
    const size_t at = At(i * sizeof(Segment));
    if (s.first_row != next) return Bad(at + 4, "first_row of a segment", next, s.first_row);
    if (s.n_rows == 0) return BadText(at + 6, "a segment has no rows");
    if (s.priority > 2) return Bad(at + 8, "priority up to", 2, s.priority);
    if (s.zero0 != 0 || s.zero1 != 0) return BadText(at + 9, "reserved bytes are not zero");
    next += s.n_rows;
  }
  if (next != raw.n_rows) return Bad(At(0), "rows of all segments", raw.n_rows, next);
  return absl::OkStatus();
}

absl::Status Parser::CallSlots() const {
  uint64_t previous = 0;
  const size_t base = view->segments.size_bytes();
  for (size_t i = 0; i < view->slots.size(); ++i) {
    const Slot& s = view->slots[i];
    const size_t at = At(base + i * sizeof(Slot));
    if (s.row >= raw.n_rows) return Bad(at + 2, "row of a slot below", raw.n_rows, s.row);
    if (s.zero0 != 0 || s.zero1 != 0) return BadText(at + 5, "reserved bytes are not zero");
    const uint64_t key = (uint64_t{s.expert} << 24 | uint64_t{s.row} << 8 | s.slot) + 1;
    if (key <= previous) return BadText(at, "slots are not sorted by (expert, row, slot)");
    previous = key;
  }
  return absl::OkStatus();
}

absl::Status Parser::TimingTable(size_t offset) const {
  std::memcpy(&view->timing, tables.data() + offset, sizeof(Timing));
  if (view->timing.zero0 != 0 || view->timing.reserved != 0)
    return BadText(At(offset), "reserved bytes of Timing are not zero");
  return absl::OkStatus();
}

absl::Status Parser::Result() const {
  RETURN_IF_ERROR(CheckFlags(kResultFlags));
  const bool partial = (raw.flags & kPartial) != 0, last = (raw.flags & kLast) != 0;
  if (partial == last) return BadText(36, "a RESULT is either PARTIAL or LAST");
  if (raw.budget_us != 0) return Bad(32, "budget_us", 0, raw.budget_us);
  if (!IsElementType(raw.dtype_out)) return Bad(39, "dtype_out of 1..5", 1, raw.dtype_out);
  if (raw.hidden == 0) return BadText(40, "hidden is 0");
  if (raw.n_slots == 0 || raw.n_slots > kCallSlotsMax)
    return Bad(48, "n_ranges from 1 to", kCallSlotsMax, raw.n_slots);
  if (raw.n_segments > kCallRowsMax) return Bad(46, "n_segments up to", kCallRowsMax, raw.n_segments);
  const size_t ranges = raw.n_slots * sizeof(Range);
  RETURN_IF_ERROR(CheckTables(ranges + sizeof(Timing) + raw.n_segments * sizeof(uint32_t)));
  view->ranges = Table<Range>(0, raw.n_slots);
  view->share_us = Table<uint32_t>(ranges + sizeof(Timing), raw.n_segments);
  uint64_t slots = 0, next = 0;
  for (size_t i = 0; i < view->ranges.size(); ++i) {
    const Range& r = view->ranges[i];
    const uint64_t end = uint64_t{r.first_slot} + r.n_slots;
    if (r.n_slots == 0 || r.first_slot < next || end > kCallSlotsMax) {
      return BadText(At(i * sizeof(Range)), "ranges must ascend, be disjoint and not empty");
    }
    next = end;
    slots += r.n_slots;
  }
  const uint64_t payload = slots * RowBytes(view->header.dtype_out, raw.hidden);
  if (raw.payload_bytes != payload) return Bad(52, "payload_bytes", payload, raw.payload_bytes);
  return TimingTable(ranges);
}

absl::Status Parser::RejectTable() const {
  RawReject reject;
  if (tables.size() < sizeof(reject)) return Bad(48, "bytes of tables", 64, tables.size());
  std::memcpy(&reject, tables.data(), sizeof(reject));
  if (reject.code == 0 || reject.code > static_cast<uint16_t>(RejectCode::kInternal)) {
    return Bad(At(0), "reject code up to", static_cast<uint16_t>(RejectCode::kInternal), reject.code);
  }
  if (reject.text_bytes > kRejectTextBytesMax)
    return Bad(At(2), "text_bytes up to", kRejectTextBytesMax, reject.text_bytes);
  RETURN_IF_ERROR(CheckTables(sizeof(reject) + reject.text_bytes));
  view->reject_code = static_cast<RejectCode>(reject.code);
  view->reject_arg = reject.arg;
  view->reject_text = {reinterpret_cast<const char*>(tables.data()) + sizeof(reject), reject.text_bytes};
  return absl::OkStatus();
}

absl::Status Parser::ByKind() const {
  switch (static_cast<Kind>(raw.kind)) {
    case Kind::kCall:
      return Call();
    case Kind::kResult:
      return Result();
    case Kind::kHello:
    case Kind::kWelcome:
    case Kind::kBind:
      RETURN_IF_ERROR(CheckFlags(kPayloadSum));
      RETURN_IF_ERROR(CheckUnused(false, false, false, true));
      return CheckTables(0);
    default:
      break;
  }
  const Kind kind = static_cast<Kind>(raw.kind);
  RETURN_IF_ERROR(CheckFlags(0));
  RETURN_IF_ERROR(CheckUnused(kind == Kind::kReject || kind == Kind::kCancel, false, false, false));
  switch (kind) {
    case Kind::kReject:
      return RejectTable();
    case Kind::kCredit: {
      RETURN_IF_ERROR(CheckTables(sizeof(RawCredit)));
      RawCredit credit;
      std::memcpy(&credit, tables.data(), sizeof(credit));
      view->credit_rows = credit.rows;
      view->credit_bytes = credit.bytes;
      return absl::OkStatus();
    }
    case Kind::kHeartbeat:
      RETURN_IF_ERROR(CheckTables(sizeof(Timing)));
      return TimingTable(0);
    default:
      return CheckTables(0);  // CANCEL, DRAIN, BYE
  }
}

absl::Status DecodeParts(std::span<const std::byte> head, std::span<const std::byte> rest, View* view) {
  *view = View{};
  Parser p;
  p.view = view;
  std::memcpy(&p.raw, head.data(), kHeaderBytes);
  const RawHeader& raw = p.raw;
  if (raw.magic != kMagic) return Bad(0, "magic", kMagic, raw.magic);
  if (raw.version != kVersion) {
    return FailedPrecondition("wire version, expected " + std::to_string(kVersion) + ", got " +
                              std::to_string(raw.version));
  }
  if (raw.header_bytes < kHeaderBytes || raw.header_bytes > kHeaderBytesMax || raw.header_bytes % 64 != 0) {
    return Bad(6, "header_bytes, a multiple of 64 up to", kHeaderBytesMax, raw.header_bytes);
  }
  const size_t extension = raw.header_bytes - kHeaderBytes;
  if (rest.size() < extension || rest.size() - extension < raw.payload_bytes) {
    return Bad(52, "bytes of the frame at least", uint64_t{raw.header_bytes} + raw.payload_bytes,
               kHeaderBytes + rest.size());
  }
  const size_t before_payload = rest.size() - raw.payload_bytes;
  if (HeaderSum(raw, TablesHash(rest.first(before_payload))) != raw.tables_sum) {
    return DataLoss("CORRUPT at offset 56: header and tables do not fit tables_sum");
  }
  view->header = ToHeader(raw);
  view->trusted = true;
  p.tables = rest.subspan(extension, before_payload - extension);
  p.tables_offset = raw.header_bytes;
  if (raw.kind < static_cast<uint8_t>(Kind::kHello) || raw.kind > static_cast<uint8_t>(Kind::kBye)) {
    if ((raw.flags & kIgnorable) != 0) return absl::OkStatus();
    view->trusted = false;  // a kind we cannot skip: the peer must not go on
    return Bad(5, "kind up to", static_cast<uint8_t>(Kind::kBye), raw.kind);
  }
  RETURN_IF_ERROR(p.ByKind());
  view->payload = rest.subspan(before_payload);
  if ((raw.flags & kPayloadSum) == 0) {
    return raw.payload_sum == 0 ? absl::OkStatus()
                                : Bad(60, "payload_sum without its flag", 0, raw.payload_sum);
  }
  if (PayloadSum(view->payload) != raw.payload_sum)
    return DataLoss("CORRUPT at offset 60: payload does not fit payload_sum");
  return absl::OkStatus();
}

}  // namespace

std::string_view RejectName(RejectCode code) {
  switch (code) {
    case RejectCode::kNotHosted:
      return "NOT_HOSTED";
    case RejectCode::kLoading:
      return "LOADING";
    case RejectCode::kDraining:
      return "DRAINING";
    case RejectCode::kOverloaded:
      return "OVERLOADED";
    case RejectCode::kExpired:
      return "EXPIRED";
    case RejectCode::kClassMismatch:
      return "CLASS_MISMATCH";
    case RejectCode::kUnknownModel:
      return "UNKNOWN_MODEL";
    case RejectCode::kBadFrame:
      return "BAD_FRAME";
    case RejectCode::kOverCredit:
      return "OVER_CREDIT";
    case RejectCode::kCorrupt:
      return "CORRUPT";
    case RejectCode::kInternal:
      return "INTERNAL";
  }
  return "?";
}

size_t RowBytes(DtypeCode dtype, uint32_t hidden) {
  const size_t n = hidden;
  const size_t padded = (n + 3) & ~size_t{3};  // scales are f32
  switch (dtype) {
    case DtypeCode::kNone:
      return 0;
    case DtypeCode::kBf16:
      return 2 * n;
    case DtypeCode::kF32:
      return 4 * n;
    case DtypeCode::kF8Scale128:
      return padded + 4 * ((n + 127) / 128);
    case DtypeCode::kI8Scale32:
      return padded + 4 * ((n + 31) / 32);
    case DtypeCode::kU64:
      return 8 * n;
  }
  return 0;
}

absl::Status Decode(std::span<const std::byte> bytes, View* view) {
  *view = View{};
  if (bytes.size() < kHeaderBytes) return Bad(0, "bytes of the frame at least", kHeaderBytes, bytes.size());
  return DecodeParts(bytes.first(kHeaderBytes), bytes.subspan(kHeaderBytes), view);
}

absl::Status Decode(const WireFrame& frame, View* view) {
  *view = View{};
  if (frame.size() < kHeaderBytes) return Bad(0, "bytes of the frame at least", kHeaderBytes, frame.size());
  return DecodeParts(frame.head(), frame.rest(), view);
}

}  // namespace frame
}  // namespace consilium
