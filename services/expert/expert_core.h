// The expert shard's state machine: queues, batches, credits, hosting. Single-threaded, no clock, no lock, no
// I/O; events in, actions out. Tensors appear only as pointers handed through.
//
// Batching: while one grouped FFN runs, arrivals gather; when it is done the next job takes whole calls
// (job_choice.h: decode lane first, in order of arrival, until kJobSlotsMax slots); their slots are grouped
// per (layer, expert) over all frames. There is no timer, and the shard never waits for more rows (I3).
//
// Answers: every CALL that arrives whole is answered by exactly one of RESULT (its last frame) or REJECT,
// unless it was cancelled or its stream closed. A CALL whose id does not rise within its stream is a
// duplicate and is dropped.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/net/expert_channel.h"
#include "common/net/frame.h"
#include "services/expert/expert_backend.h"

namespace consilium {

enum class HostState : uint8_t { kAbsent, kLoading, kVerified, kReady, kDraining };

struct ExpertKey {
  LayerId layer;
  ExpertId expert;
  auto operator<=>(const ExpertKey&) const = default;
};

namespace expert_event {
// The HELLO of a stream was read. The core answers with Welcome.
struct ConnOpened {
  ConnId conn = 0;
  Lane lane = Lane::kDecode;
  RouterHello hello;
};
// BIND: more models and classes on an open stream.
struct Bound {
  ConnId conn = 0;
  RouterHello more;
};
struct ConnClosed {
  ConnId conn = 0;
};
// CALL or CANCEL as received, not yet decoded. Anything that breaks framing is answered with Close.
struct FrameIn {
  ConnId conn = 0;
  WireFrame frame;
};
struct JobDone {
  absl::Status status;
  uint32_t compute_us = 0;
};
struct LoadDone {
  ExpertKey key;
  absl::Status status;
  ExpertHandle handle = 0;
};
// From the controller (or --static-experts). Idempotent by op_id: a repeated one is answered again, not done
// again.
struct Command {
  enum class Kind : uint8_t { kLoad, kDrop, kDrain };
  Kind kind = Kind::kLoad;
  uint64_t op_id = 0;
  std::vector<ExpertKey> experts;  // kDrain: empty means the whole shard, for good
};
// next_deadline() has come.
struct Tick {};
}  // namespace expert_event
using ExpertEvent = std::variant<expert_event::ConnOpened, expert_event::Bound, expert_event::ConnClosed,
                                 expert_event::FrameIn, expert_event::JobDone, expert_event::LoadDone,
                                 expert_event::Command, expert_event::Tick>;

namespace expert_action {
// To be sent as WELCOME. One code per binding of the HELLO, in its order.
struct Welcome {
  ConnId conn = 0;
  RouterHello hello;  // as it came, for EncodeWelcome
  std::vector<BindCode> models, classes;
  Credit credit;
};
struct Send {
  ConnId conn = 0;
  BufferRef frame;
};  // RESULT, REJECT, CREDIT, HEARTBEAT, DRAIN: whole frames
struct Close {
  ConnId conn = 0;
  absl::Status why;
};  // framing is lost; the shell closes and sends ConnClosed
struct RunJob {
  GroupedFfnJob job;
};  // spans live in the core until JobDone; one job at a time
struct Load {
  ExpertKey key;
};  // answered by LoadDone
struct Drop {
  ExpertHandle handle = 0;
};
struct HostChanged {
  ExpertKey key;
  HostState state = HostState::kAbsent;
};
struct OpDone {
  uint64_t op_id = 0;
  bool ok = true;
  std::string text;
};
}  // namespace expert_action
using ExpertAction =
    std::variant<expert_action::Welcome, expert_action::Send, expert_action::Close, expert_action::RunJob,
                 expert_action::Load, expert_action::Drop, expert_action::HostChanged, expert_action::OpDone>;

// What the shard serves and its bounds.
struct ExpertCoreOptions {
  std::string manifest;  // 32 bytes; HELLO's models are matched with it
  uint32_t hidden = 0;   // elements of a row
  frame::DtypeCode dtype_in = frame::DtypeCode::kF32, dtype_out = frame::DtypeCode::kF32;
  std::string class_name;  // numerics class and the fingerprint of this machine's kernels
  uint64_t fingerprint = 0;
  uint32_t layers = 0, experts = 0;            // bounds of ExpertKey: all decoder layers, experts per layer
  std::map<ExpertKey, uint64_t> expert_bytes;  // every expert the model has -> bytes it takes
  uint64_t capacity_bytes = 0;                 // for weights; 0: no limit
  uint32_t credit_rows = kLaneCreditRows;      // of each stream; at least 4/3 of the largest call (WIRE.md)
  uint64_t credit_bytes = kLaneCreditBytes;
  uint32_t queued_rows_max = kShardQueuedRowsMax;  // over all streams; beyond: OVERLOADED
  uint32_t job_slots_max = kJobSlotsMax;
  int64_t heartbeat_us = kHeartbeatUs;
  int64_t bulk_wait_max_us = kBulkWaitMaxUs;
};

// Told of everything that is counted. Methods must not call back into the core.
class ExpertObserver {
 public:
  virtual ~ExpertObserver() = default;
  virtual void OnCallIn(Lane, uint32_t /*rows*/, uint32_t /*slots*/, size_t /*bytes*/) {}
  virtual void OnJobStart(uint32_t /*frames*/, uint32_t /*slots*/, std::span<const ExpertGroup>,
                          std::span<const ExpertKey> /*of the groups*/) {}
  virtual void OnJobDone(uint32_t /*compute_us*/, bool /*ok*/) {}
  virtual void OnResult(uint32_t /*queue_us*/, uint32_t /*slots*/, size_t /*bytes*/) {}
  virtual void OnReject(frame::RejectCode) {}
  virtual void OnDropped(const char* /*why: cancelled, closed, duplicate*/) {}
};

class ExpertCore {
 public:
  // `pool` makes result frames; `observer` may be null. Both outlive the core.
  ExpertCore(ExpertCoreOptions options, BufferPool* pool, ExpertObserver* observer = nullptr);
  ~ExpertCore();
  ExpertCore(const ExpertCore&) = delete;
  ExpertCore& operator=(const ExpertCore&) = delete;

  // Appends to *out what is to be done, in order. No allocation in steady state.
  void Handle(MonoTime now, ExpertEvent event, std::vector<ExpertAction>* out);
  MonoTime next_deadline() const;  // when Tick is due; kNever: no need

  HostState state(ExpertKey key) const;
  uint32_t experts_ready() const { return experts_ready_; }
  uint64_t loaded_bytes() const { return loaded_bytes_; }  // ready, draining and loading experts
  uint32_t queued_rows() const { return queued_rows_; }
  size_t calls_open() const { return calls_open_; }  // queued or in the running job
  size_t streams() const { return streams_.size(); }
  bool draining() const { return draining_; }
  bool idle() const { return calls_open_ == 0; }  // all calls answered: a draining shard may go
  uint32_t progress() const { return progress_; }

 private:
  struct Call;
  struct Stream;
  struct Host;
  struct Op;
  struct Run;  // slots of one call for one expert
  struct CallList {
    Call* head = nullptr;
    Call* tail = nullptr;
  };
  using Actions = std::vector<ExpertAction>;

  void On(expert_event::ConnOpened& e, Actions* out);
  void On(expert_event::Bound& e, Actions* out);
  void On(expert_event::ConnClosed& e, Actions* out);
  void On(expert_event::FrameIn& e, Actions* out);
  void On(expert_event::JobDone& e, Actions* out);
  void On(expert_event::LoadDone& e, Actions* out);
  void On(expert_event::Command& e, Actions* out);
  void On(expert_event::Tick& e, Actions* out);

  // calls (expert_core.cc)
  void Bind(Stream* stream, const RouterHello& hello, std::vector<BindCode>* models,
            std::vector<BindCode>* classes);
  void OnCall(Stream* stream, WireFrame frame, Actions* out);
  void OnCancel(Stream* stream, CallId id, Actions* out);
  struct Refusal;
  bool Refuse(const Stream& stream, const frame::View& view, Refusal* refusal) const;
  bool RefuseExpert(ExpertKey key, Refusal* refusal) const;
  void Reject(Stream* stream, const frame::Header& call, frame::RejectCode code, uint32_t arg,
              std::string_view text, Actions* out);
  void Send(Stream* stream, BufferRef frame, Actions* out);
  Call* NewCall();
  void FreeCall(Call* call);
  void Enqueue(Stream* stream, Call* call);
  void Unqueue(Call* call);  // its rows go back to the stream's credit
  void UnlinkFromStream(Call* call);
  void Forget(Call* call);  // answered or dropped: off its stream, experts count down, memory reused
  void AnnounceCredit(Stream* stream, Actions* out);

  // jobs (expert_job.cc)
  void StartJob(Actions* out);
  void TakeCalls(Actions* out);
  void GroupRows();
  void PrepareResults(Call* call);
  void FinishCall(Call* call, uint32_t compute_us, Actions* out);
  frame::Timing TimingNow() const;

  // hosting (expert_hosting.cc)
  Host* FindHost(ExpertKey key);
  const Host* FindHost(ExpertKey key) const;
  void SetState(Host* host, HostState state, Actions* out);
  std::string StartLoad(Host* host, uint64_t op_id, Actions* out);  // an error text, or ""
  std::string StartDrop(Host* host, bool drop, uint64_t op_id, Actions* out);
  void Unload(Host* host, Actions* out);
  void Settle(Actions* out);  // finishes drops and drains that waited for calls
  void WaitFor(Host* host, uint64_t op_id);
  void FinishWaiters(Host* host, std::string_view error, Actions* out);
  void OpStep(uint64_t op_id, std::string_view error, Actions* out);
  void DrainShard(uint64_t op_id, Actions* out);

  const ExpertCoreOptions options_;
  BufferPool* const pool_;
  ExpertObserver* const observer_;
  ExpertObserver no_observer_;
  MonoTime now_ = 0;

  std::map<ConnId, std::unique_ptr<Stream>>
      streams_;  // ordered: heartbeats and drains go out in a fixed order
  CallList lanes_[kLanes];
  uint32_t queued_rows_ = 0;
  size_t calls_open_ = 0;
  std::vector<std::unique_ptr<Call>> call_arena_;
  std::vector<Call*> idle_calls_;

  bool job_running_ = false;
  MonoTime job_started_ = 0;
  uint32_t job_slots_ = 0;
  std::vector<Call*> job_calls_;
  std::vector<Run> runs_;
  std::vector<ExpertGroup> groups_;
  std::vector<ExpertKey> group_keys_;
  std::vector<ExpertRow> rows_;
  std::vector<uint32_t> shares_;
  uint32_t progress_ = 0;

  std::vector<Host> hosts_;  // [layers * experts]
  std::map<uint64_t, Op> ops_;
  std::vector<uint64_t> finished_ops_;  // oldest first, at most kFinishedOpsMax
  std::vector<Host*> settled_;          // draining hosts without calls
  std::vector<uint64_t> drain_ops_;     // wait for idle()
  uint32_t experts_ready_ = 0;
  uint32_t loads_pending_ = 0;
  uint64_t loaded_bytes_ = 0;
  double load_us_ = 0;  // EWMA of one load, for LOADING's eta
  bool draining_ = false;
};

}  // namespace consilium
