// The attention worker's state machine: sequences, batches, the walk of each flight through the layers,
// dispatch to expert shards and retries. Single-threaded and deterministic: events and time in, actions out;
// no clock, lock or I/O. Tensors appear only as buffer handles. Compute is an action (RunStage) with a
// completion event (StageDone).
//
// A flight:  kStart -> routing -> calls out + kShared -> all slots filled and shared done -> kCombine -> ...
// -> samples. While one flight waits for experts another may compute.
//
// Lanes: a flight of decode rows only uses the decode lane, any other the bulk lane, so that a prompt chunk
// never stands before another worker's decode rows on a shard. With two or more flights the planner keeps
// decode rows and prompt chunks in flights of their own, so decode never waits for a chunk's bulk frames;
// with one flight they mix.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/net/expert_channel.h"
#include "common/placement/placement_view.h"
#include "common/session/session.h"
#include "services/attention/layer_backend.h"

namespace consilium {

using SessionId = uint64_t;  // one stream of one gateway, given by the shell, never reused

struct AttentionConfig {
  BackendShape shape;
  std::string worker;    // name, for logs
  std::string manifest;  // 32 bytes; a submission with another is refused
  std::string class_name = "f32";
  uint64_t fingerprint = 0;  // with manifest and class the root of every KV block hash
  ModelIx model;             // as said in HELLO
  uint16_t class_ix = 0;
  uint32_t flights = 2;            // micro-batches at a time, 1..kFlightsMax
  uint32_t flight_rows_max = 256;  // rows of one flight, 1..kFlightRowsMax
  uint32_t prefill_chunk = 64;     // prompt rows of one sequence in one flight; 0: as many as fit
  bool prefix_cache = true;
  uint32_t state_snapshot_tokens = kStateSnapshotTokens;  // a multiple of kKvBlockTokens
  uint32_t request_timeout_ms = 120000;                   // for requests without a budget of their own
  uint32_t waiting_requests_max = 4096;
  uint32_t retry_after_ms = 1000;     // told to refused requests
  uint32_t resend_backoff_us = 2000;  // of a rejected slot: doubles to resend_backoff_max_us
  uint32_t resend_backoff_max_us = 200000;
};

namespace attention_event {
struct Submit {
  SessionId session;
  SessionSubmit submit;
};
struct Cancel {
  SessionId session;
  uint64_t request;
  int32_t choice = -1;
};  // -1: all choices
struct SessionClosed {
  SessionId session;
};
struct StageDone {
  StageOut out;
};
struct ChannelUp {
  ShardId shard;
  Lane lane;
  uint64_t incarnation;
  Credit credit;
};
struct ChannelResult {
  ShardId shard;
  Lane lane;
  CallResult result;
};
struct ChannelReject {
  ShardId shard;
  Lane lane;
  CallReject reject;
};
struct ChannelCredit {
  ShardId shard;
  Lane lane;
  Credit credit;
};
struct ChannelHeartbeat {
  ShardId shard;
  Lane lane;
  frame::Timing timing;
};
struct ChannelDrain {
  ShardId shard;
  Lane lane;
};
struct ChannelDown {
  ShardId shard;
  Lane lane;
  absl::Status status;
};
struct PlacementUpdate {
  std::shared_ptr<const PlacementView> view;
};  // ignored unless its epoch is newer
struct Drain {};  // no new requests (UNAVAILABLE); those here go on
struct Timer {};  // next_deadline() has come
}  // namespace attention_event
using AttentionEvent =
    std::variant<attention_event::Submit, attention_event::Cancel, attention_event::SessionClosed,
                 attention_event::StageDone, attention_event::ChannelUp, attention_event::ChannelResult,
                 attention_event::ChannelReject, attention_event::ChannelCredit,
                 attention_event::ChannelHeartbeat, attention_event::ChannelDrain,
                 attention_event::ChannelDown, attention_event::PlacementUpdate, attention_event::Drain,
                 attention_event::Timer>;

namespace attention_action {
// batch and slot_outputs live in the core until the flight's StageDone.
struct RunStage {
  StageJob job;
};
struct AbandonFlight {
  FlightId flight;
};  // never while one of its stages runs
struct SendCall {
  ShardId shard;
  Lane lane;
  CallId call;
  std::shared_ptr<const CallBody> body;
  CallOptions options;
};
struct CancelCall {
  ShardId shard;
  Lane lane;
  CallId call;
};
struct Emit {
  SessionId session;
  SessionEvents events;
};
struct ConnectShard {
  PlacementShard shard;
};  // open both lanes
struct DisconnectShard {
  ShardId shard;
};  // close both; later events of them are ignored
enum class Severity : uint8_t { kDebug, kInfo, kWarn };
struct Log {
  Severity severity;
  std::string request_id;
  std::string text;
};
// One observation of a distribution, for metrics.
enum class Metric : uint8_t {
  kQueueWaitSeconds,
  kFlightRows,
  kRoundTripSeconds,
  kCallRows,
  kRequestsPerCall,
  kStageSeconds,
  kRequestSeconds,
};
struct Observe {
  Metric metric;
  double value;
};
}  // namespace attention_action
using AttentionAction =
    std::variant<attention_action::RunStage, attention_action::AbandonFlight, attention_action::SendCall,
                 attention_action::CancelCall, attention_action::Emit, attention_action::ConnectShard,
                 attention_action::DisconnectShard, attention_action::Log, attention_action::Observe>;

// Per shard name, over restarts, in order of names; also of shards that are gone.
struct ShardStats {
  ShardId shard;  // the last one of that name
  std::string name;
  uint64_t calls = 0, results = 0, rejects = 0, lost = 0;  // lost: the stream broke
  uint64_t bytes_out = 0, bytes_in = 0, rows = 0;
  bool up[kLanes] = {false, false};
};

// Counters since start and gauges now.
struct AttentionStats {
  uint64_t requests = 0, requests_finished = 0, requests_failed = 0, requests_cancelled = 0,
           requests_refused = 0;
  uint64_t prompt_tokens = 0, generated_tokens = 0;  // computed prompt rows; tokens sampled
  uint64_t prefix_queries = 0, prefix_hits = 0;      // tokens looked up and found
  uint64_t preemptions = 0;
  uint64_t flights = 0, rows = 0;
  uint64_t resends = 0, duplicates = 0;
  uint64_t mismatches = 0;       // a duplicate result with other bits: an exactness violation
  uint64_t unknown_results = 0;  // of calls that were cancelled or lost
  uint32_t requests_running = 0, requests_waiting = 0;
  uint32_t flights_now = 0, calls_now = 0, calls_queued = 0;
  uint32_t kv_blocks_used = 0, kv_blocks_total = 0, kv_blocks_cached = 0;
  uint32_t state_slots_used = 0, state_slots_idle = 0, state_slots_total = 0;  // idle: kept by pages only
  uint64_t epoch = 0;
  std::vector<uint64_t> expert_rows;  // [layers * experts], rows routed since start
  std::vector<ShardStats> shards;
};

class AttentionCore {
 public:
  // `pool`: where call bodies are built; outlives the core.
  AttentionCore(const AttentionConfig& config, BufferPool* pool);
  ~AttentionCore();
  AttentionCore(const AttentionCore&) = delete;
  AttentionCore& operator=(const AttentionCore&) = delete;

  // Appends to *out. Time never goes back.
  void Handle(MonoTime now, AttentionEvent event, std::vector<AttentionAction>* out);
  // When a Timer event is wanted; kNever if none.
  MonoTime next_deadline() const;
  // Requests not yet ended.
  size_t live_requests() const;
  const AttentionStats& stats() const;
  // Empty when nothing is held beyond cached blocks: no request, flight, call or KV reference. Else says what
  // is; for tests and the end of a drain.
  std::string Leaks() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium
