// The seam between a router and one lane of one expert shard. Implementations: in-process, local socket
// and gRPC; all pass the contract test (expert_channel_contract.h). Rules (docs/ARCHITECTURE.md, invariants
// I1-I5):
//  * Send never blocks; the body is immutable and shared by retries and hedges;
//  * exactly one of OnResult(last) or OnReject follows each accepted Send, unless the channel goes down or
//  the call is
//    cancelled; at-least-once: the router drops results for unknown calls and filled slots;
//  * sink methods run on the channel's thread (in-process: the poster's), must not block and must not call
//  back into
//    the channel; the shell posts them to the core's strand.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/net/frame.h"
#include "common/tensor/buffer_pool.h"

namespace consilium {

enum class Lane : uint8_t { kDecode = 0, kBulk = 1 };
inline constexpr size_t kLanes = 2;

struct CallOptions {
  Epoch epoch;
  uint32_t budget_us = 0;  // time left; 0 is invalid
  uint16_t flags = 0;      // frame::kRetry, frame::kHedge, frame::kAudit
};

// A RESULT as it arrived: `payload` holds the slots of `ranges` in slot-table order, row_bytes_out each.
struct CallResult {
  CallId call;
  bool last = true;
  std::span<const frame::Range> ranges;  // inside `buffer`, as the payload
  frame::Timing timing;
  BufferRef buffer;  // keeps ranges and payload alive
  const std::byte* payload = nullptr;
  size_t payload_bytes = 0;
};

struct CallReject {
  CallId call;
  frame::RejectCode code = frame::RejectCode::kInternal;
  uint32_t arg = 0;
  std::string text;
};

// Cumulative since stream start (idempotent). A call costs body->n_rows() rows and body->frame_bytes() bytes.
// A shard gives back what left its queue, at the latest when a quarter of the window is unannounced.
struct Credit {
  uint64_t rows = 0;
  uint64_t bytes = 0;
};

using ConnId = uint64_t;  // one stream of one router at a shard, given by the shard's shell, never reused

// A shard's answer to one binding of HELLO.
enum class BindCode : uint8_t { kOk = 0, kClassMismatch = 1, kUnknownModel = 2 };

class ExpertChannel {
 public:
  class Sink {
   public:
    virtual ~Sink() = default;
    virtual void OnUp(uint32_t shard_id, uint64_t incarnation, Credit credit) = 0;  // handshake done
    virtual void OnResult(CallResult result) = 0;
    virtual void OnReject(CallReject reject) = 0;
    virtual void OnCredit(Credit credit) = 0;
    virtual void OnHeartbeat(frame::Timing timing) = 0;
    virtual void OnDrain() = 0;
    // The stream broke: every call on it is gone. The channel reconnects by itself and calls OnUp again.
    virtual void OnDown(absl::Status status) = 0;
  };
  virtual ~ExpertChannel() = default;  // no sink calls after it returns
  // UNAVAILABLE while down; RESOURCE_EXHAUSTED without credit (an own bug of the router: it tracks credit);
  // INVALID_ARGUMENT: budget 0, an id that does not rise within the stream, a frame above kFrameBytesMax.
  // A result comes in one or several OnResult (each has its ranges), the last one with last = true.
  virtual absl::Status Send(CallId call, std::shared_ptr<const CallBody> body,
                            const CallOptions& options) = 0;
  virtual void Cancel(CallId call) = 0;
  // What carries the frames now: "grpc", "local" or "inprocess"; "" while the channel is down. Thread-safe.
  virtual const char* transport() const { return ""; }
};

// What a router says in HELLO (expert.proto), as plain data.
struct RouterHello {
  std::string router_id;
  uint64_t incarnation = 0;
  struct Model {
    uint32_t ix = 0;
    std::string manifest;  // 32 bytes
    uint32_t hidden = 0;
    uint8_t dtype_in = 0, dtype_out = 0;
  };
  std::vector<Model> models;
  struct Class {
    uint16_t ix = 0;
    std::string name;
    uint64_t fingerprint = 0;
  };
  std::vector<Class> classes;
};

}  // namespace consilium
