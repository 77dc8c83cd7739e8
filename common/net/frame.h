// The frame codec of proto/WIRE.md: 64-byte header, tables, zero padding to 64, payload; little endian.
// Encoding writes into pooled buffers; decoding gives views into the received bytes. Every decode error says
// what, at which offset.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tensor/buffer_pool.h"

namespace consilium {
namespace frame {

inline constexpr uint32_t kMagic = 0x31534E43;  // "CNS1"
inline constexpr uint8_t kVersion = 1;
inline constexpr size_t kHeaderBytes = 64;

enum class Kind : uint8_t {
  kHello = 1,
  kWelcome,
  kBind,
  kCall,
  kResult,
  kReject,
  kCancel,
  kCredit,
  kHeartbeat,
  kDrain,
  kBye,
};
enum Flag : uint16_t {
  kPayloadSum = 1,
  kHedge = 2,
  kRetry = 4,
  kPartial = 8,
  kLast = 16,
  kAudit = 32,
  kIgnorable = 64,
};
enum class DtypeCode : uint8_t { kNone = 0, kBf16 = 1, kF32 = 2, kF8Scale128 = 3, kI8Scale32 = 4, kU64 = 5 };
enum class RejectCode : uint16_t {
  kNotHosted = 1,
  kLoading,
  kDraining,
  kOverloaded,
  kExpired,
  kClassMismatch,
  kUnknownModel,
  kBadFrame,
  kOverCredit,
  kCorrupt,
  kInternal,
};
std::string_view RejectName(RejectCode code);

struct Header {
  uint8_t version = kVersion;
  Kind kind = Kind::kCall;
  CallId call;
  Epoch epoch;
  ModelIx model;
  LayerId layer;
  uint16_t class_ix = 0;
  uint32_t budget_us = 0;
  uint16_t flags = 0;
  DtypeCode dtype_in = DtypeCode::kNone, dtype_out = DtypeCode::kNone;
  uint32_t hidden = 0;
  uint16_t n_rows = 0, n_segments = 0;
  uint32_t n_slots = 0;  // CALL; number of ranges in RESULT and REJECT
  uint32_t payload_bytes = 0;
};

// 16 B: rows [first_row, first_row + n_rows) belong to one request.
struct Segment {
  uint32_t tenant_ix = 0;
  uint16_t first_row = 0, n_rows = 0;
  uint8_t priority = 0;  // 0 decode, 1 prefill, 2 batch
  uint8_t zero0 = 0;
  uint16_t zero1 = 0;
  uint32_t request_tag = 0;
};
static_assert(sizeof(Segment) == 16);

// 8 B; the table is sorted by (expert, row).
struct Slot {
  uint16_t expert = 0;
  uint16_t row = 0;
  uint8_t slot = 0;  // top-k slot of the row
  uint8_t zero0 = 0;
  uint16_t zero1 = 0;
};
static_assert(sizeof(Slot) == 8);

struct Range {
  uint32_t first_slot = 0, n_slots = 0;
};
static_assert(sizeof(Range) == 8);

struct Timing {
  uint32_t queue_us = 0, service_us = 0, queued_rows = 0, batch_rows = 0, energy_uj = 0xFFFFFFFF;
  uint8_t mem_free_pct = 0, throttle = 0, state = 0, zero0 = 0;
  uint32_t progress = 0, reserved = 0;
};
static_assert(sizeof(Timing) == 32);

// Bytes of one row of `hidden` elements.
size_t RowBytes(DtypeCode dtype, uint32_t hidden);

// Views into one received frame; valid while its bytes live. Fields not of the kind are empty.
struct View {
  Header header;
  bool trusted =
      false;  // header and tables fit their sum: a REJECT may name header.call; else close the stream
  std::span<const Segment> segments;
  std::span<const Slot> slots;
  std::span<const Range> ranges;
  Timing timing;
  std::span<const uint32_t> share_us;
  RejectCode reject_code = RejectCode::kInternal;
  uint32_t reject_arg = 0;
  std::string_view reject_text;
  uint64_t credit_rows = 0, credit_bytes = 0;
  std::span<const std::byte> payload;
};

// Checks everything WIRE.md says: magic, version, lengths, reserved bits, sums, table order, rows and ranges
// in bounds. `bytes` must be 8-byte aligned. INVALID_ARGUMENT: BAD_FRAME with offset; DATA_LOSS: a sum
// differs (CORRUPT); FAILED_PRECONDITION: unknown version (close the stream). On an error with view->trusted
// the stream lives and a REJECT can name the call. An unknown kind with kIgnorable is OK with header and
// nothing else: skip it.
absl::Status Decode(std::span<const std::byte> bytes, View* view);

// A frame on its way: `buffer` is the whole frame. For CALLs of a shared body the first 64 bytes of the
// buffer are replaced by `header` (has_header); all other bytes are read in place.
struct WireHeader {
  std::byte bytes[kHeaderBytes];
};

}  // namespace frame

struct WireFrame {
  BufferRef buffer;
  bool has_header = false;
  frame::WireHeader header;

  size_t size() const { return buffer.size(); }
  std::span<const std::byte> head() const;  // 64 bytes
  std::span<const std::byte> rest() const { return buffer.bytes().subspan(frame::kHeaderBytes); }
};

namespace frame {
// The same on a frame in two pieces. A frame shorter than a header is INVALID_ARGUMENT.
absl::Status Decode(const WireFrame& frame, View* view);
}  // namespace frame

// The immutable part of a CALL: header template, tables and payload in one buffer, shared by retries and
// hedges. Only the header (and its sum) is rewritten for each send.
class CallBody {
 public:
  // What to send: each row once; slots sorted by (expert, row).
  struct Plan {
    ModelIx model;
    LayerId layer;
    uint16_t class_ix = 0;
    frame::DtypeCode dtype_in = frame::DtypeCode::kF32, dtype_out = frame::DtypeCode::kF32;
    uint32_t hidden = 0;
    std::span<const frame::Segment> segments;
    std::span<const frame::Slot> slots;
    std::span<const uint32_t> source_rows;  // row i of the frame is row source_rows[i] of `source`
    const std::byte* source = nullptr;      // [.., RowBytes(dtype_in, hidden)]
    bool payload_sum = true;                // off where the transport cannot corrupt (in-process, TLS)
  };
  // The plan must be valid (sorted slots, segments that partition the rows, limits): an own bug otherwise,
  // CHECK. Memory comes from `pool` and a cache of its own: no allocation in steady state.
  static std::shared_ptr<const CallBody> Build(const Plan& plan, BufferPool* pool);

  uint32_t n_rows() const { return n_rows_; }
  uint32_t n_slots() const { return n_slots_; }
  LayerId layer() const { return layer_; }
  size_t frame_bytes() const { return buffer_.size(); }
  size_t result_bytes() const { return result_bytes_; }  // payload of the whole result
  std::span<const frame::Slot> slots() const;
  frame::Header header() const;  // of the template: no call, epoch, budget
  // The frame for one send: its own header; tables and payload are in `rest()`.
  frame::WireHeader Header(CallId call, Epoch epoch, uint32_t budget_us, uint16_t flags) const;
  WireFrame Frame(CallId call, Epoch epoch, uint32_t budget_us, uint16_t flags) const;
  std::span<const std::byte> rest() const { return buffer_.bytes().subspan(frame::kHeaderBytes); }
  const BufferRef& buffer() const { return buffer_; }

 private:
  BufferRef buffer_;  // header space, tables, padding, payload
  uint32_t n_rows_ = 0, n_slots_ = 0;
  LayerId layer_;
  size_t result_bytes_ = 0;
  uint64_t tables_hash_ = 0;  // XXH3-64 of the tables: the seed of every header's sum
};

namespace frame {

// A RESULT being written: experts write their rows straight into payload().
struct ResultFrame {
  BufferRef buffer;
  Range slots;
  std::byte* payload = nullptr;  // slots.n_slots rows of RowBytes(dtype_out) in slot-table order
};
// Space for slots [slots.first_slot, +n_slots) of a call's result: one range. A result of more than
// kFrameBytesMax is split over several frames of SlotsPerResult slots; only the last has kLast, the others
// kPartial.
uint32_t SlotsPerResult(const Header& call);
ResultFrame BeginResult(const Header& call, Range slots, BufferPool* pool);
// Completes header, range, timing, shares and sums; the frame can be sent. `share_us`: one per segment of the
// call. The payload has a sum if the call had one.
void FinishResult(ResultFrame* result, const Header& call, const Timing& timing,
                  std::span<const uint32_t> share_us, bool last);

// The most rows of one CALL so that its frame stays within kFrameBytesMax, kCallRowsMax and kCallSlotsMax,
// when each row has at most `slots_per_row` slots and a segment of its own. Routers split larger dispatches.
// At least 1.
uint32_t RowsPerCallMax(DtypeCode dtype_in, uint32_t hidden, uint32_t slots_per_row);

BufferRef EncodeReject(CallId call, Epoch epoch, RejectCode code, uint32_t arg, std::string_view text,
                       BufferPool* pool);
BufferRef EncodeCancel(CallId call, BufferPool* pool);
BufferRef EncodeCredit(uint64_t rows, uint64_t bytes, BufferPool* pool);
BufferRef EncodeHeartbeat(const Timing& timing, BufferPool* pool);
BufferRef EncodePayload(Kind kind, std::string_view payload, BufferPool* pool);  // HELLO, WELCOME, BIND
BufferRef EncodeBare(Kind kind, BufferPool* pool);                               // DRAIN, BYE

}  // namespace frame
}  // namespace consilium
