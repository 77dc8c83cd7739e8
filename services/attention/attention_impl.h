// Inside of the attention core; included by its .cc files only: attention_core.cc (events),
// attention_requests.cc (life of requests and choices), attention_flights.cc (plans and stages),
// attention_dispatch.cc (shards and calls).
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/limits.h"
#include "common/placement/replica_choice.h"
#include "services/attention/attention_core.h"
#include "services/attention/dispatch_combine.h"
#include "services/attention/kv_store.h"
#include "services/attention/step_planner.h"

namespace consilium {

namespace attention {

struct Request;

// One choice of a request.
struct Sequence {
  Request* request = nullptr;
  uint32_t choice = 0;
  std::vector<TokenId> tokens;  // prompt, then generated
  uint32_t computed = 0;        // positions with KV
  std::optional<KvStore::Seq> kv;
  int flight = -1;
  bool scheduled = false;  // in Impl::schedule_
  bool done = false;       // nothing more is wanted
};

struct Request {
  uint64_t serial = 0;  // rises with arrival
  SessionId session = 0;
  SessionSubmit submit;
  std::string root;           // of its KV hashes
  bool long_context = false;  // FlightSequence::long_context
  MonoTime arrived = 0, deadline = kNever;
  std::vector<Sequence> choices;  // never resized
  uint32_t open = 0;              // choices not done
  uint32_t in_flight = 0;         // choices in a flight: the request lives until they are back
  uint32_t leader = 0;            // the choice that computes the prompt; the others fork from it
  bool prompt_done = false, accepted = false, ended = false;
  Position scored = 0;  // prompt logprobs up to this position were emitted
  uint32_t prompt_size() const { return static_cast<uint32_t>(submit.prompt.size()); }
  // Tokens that its choices share: the full pages before the last prompt token.
  uint32_t fork_point() const { return (prompt_size() - 1) / kKvBlockTokens * kKvBlockTokens; }
};

struct FlightEntry {
  Sequence* sequence = nullptr;
  uint32_t first_row = 0, rows = 0;
};
struct SampleEntry {
  Sequence* sequence = nullptr;
  Position position = 0;  // of the token that comes out
  bool score_only = false;
};

struct Flight {
  bool active = false;
  bool decode_only = false;
  bool doomed = false;         // abandon as soon as no stage runs
  bool stage_running = false;  // kStart or kCombine
  bool shared_running = false, shared_done = false;
  FlightBatch batch;
  std::vector<FlightEntry> entries;
  std::vector<SampleEntry> samples;
  std::vector<uint32_t> request_tag;
  std::vector<uint8_t> priority;
  // The layer whose experts are away.
  bool routed = false;
  LayerId layer;
  std::vector<uint16_t> experts;
  BufferRef wire_rows;
  SlotTable slots;
  std::vector<uint32_t> unassigned;  // slots without a call, ascending
  std::vector<PlannedCall> failed;   // calls that may be sent again as they were: their slots are unassigned
  std::vector<uint64_t> calls;       // ascending
  uint32_t attempts = 0;             // failed calls of this layer
  MonoTime retry_at = kNever;        // for unassigned slots
  Lane lane() const { return decode_only ? Lane::kDecode : Lane::kBulk; }
};

struct Call {
  uint64_t id = 0;
  PlannedCall plan;
  uint32_t flight = 0;
  Lane lane = Lane::kDecode;
  bool sent = false;
  MonoTime sent_at = 0;
  uint16_t flags = 0;
};

struct Channel {
  bool up = false;
  std::string refusal;                // the last one said, so that a reconnect repeats none
  Credit credit, sent;                // cumulative since the stream's start
  std::vector<uint64_t> queue;        // calls without credit, ascending; bounded by the flights' slots
  std::vector<uint64_t> outstanding;  // ascending
  uint64_t rows_in_flight = 0;
};

struct Shard {
  PlacementShard info;
  bool retired = false;  // no longer in the placement: closed when its calls are done
  Channel lanes[kLanes];
  uint32_t queued_rows = 0;
  double us_per_row = 1;
  ShardStats* stats = nullptr;  // of its name, over restarts
};

}  // namespace attention

class AttentionCore::Impl {
 public:
  Impl(const AttentionConfig& config, BufferPool* pool);
  void Handle(MonoTime now, AttentionEvent event, std::vector<AttentionAction>* out);
  MonoTime next_deadline() const;
  size_t live_requests() const { return by_key_.size(); }
  const AttentionStats& stats();
  std::string Leaks() const;

 private:
  using Request = attention::Request;
  using Sequence = attention::Sequence;
  using Flight = attention::Flight;
  using Call = attention::Call;
  using Shard = attention::Shard;
  using Channel = attention::Channel;

  // attention_core.cc
  void On(attention_event::Submit& e);
  void On(attention_event::Cancel& e);
  void On(attention_event::SessionClosed& e);
  void On(attention_event::StageDone& e);
  void On(attention_event::ChannelUp& e);
  void On(attention_event::ChannelResult& e);
  void On(attention_event::ChannelReject& e);
  void On(attention_event::ChannelCredit& e);
  void On(attention_event::ChannelHeartbeat& e);
  void On(attention_event::ChannelDrain& e);
  void On(attention_event::ChannelDown& e);
  void On(attention_event::PlacementUpdate& e);
  void On(attention_event::Drain& e);
  void On(attention_event::Timer&) {}
  void Pump();
  void FlushEvents();
  SessionEvents& Pending(SessionId session);
  void LogLine(attention_action::Severity severity, const std::string& request_id, std::string text);
  void Observe(attention_action::Metric metric, double value);

  // attention_requests.cc
  absl::Status Validate(const SessionSubmit& submit) const;
  void Refuse(SessionId session, uint64_t request, const absl::Status& why, uint32_t retry_after_ms);
  void StartRequest(SessionId session, SessionSubmit submit);
  FinishReason FinishedBy(const Sequence& sequence) const;
  void PromoteLeader(Request* request);
  void Schedule(Sequence* sequence);
  void Unschedule(Sequence* sequence);
  void ForkChoices(Request* request);
  void Emit(SessionId session, SessionToken token);
  void AddToken(Sequence* sequence, SampleResult result);
  void FinishChoice(Sequence* sequence, FinishReason reason);
  // Ends a request at once; `emit` false for a closed session.
  void FailRequest(Request* request, const absl::Status& why, uint32_t retry_after_ms, bool emit);
  void StopChoice(Sequence* sequence);
  void EndRequest(Request* request);
  void ExpireDeadlines();
  void FreeEnded();
  void ReleaseKv(Sequence* sequence);
  void Accept(Request* request, uint32_t cached_tokens);

  // attention_flights.cc
  void Plan();
  bool PlanOnce();
  void BuildView();
  void Preempt(Sequence* sequence);
  void BeginFlight(const PlannedFlight& planned);
  void AddRows(Flight* flight, Sequence* sequence, uint32_t rows);
  bool has_states() const { return config_.shape.state_slots > 0; }
  // A state after `computed` tokens is worth keeping: the others of the request fork from it and later
  // prompts hit it.
  bool KeepsState(const Request& request, uint32_t computed) const;
  // The most rows that may follow `computed` tokens in one flight, so that it ends where a state is kept.
  uint32_t RowsToState(const Request& request, uint32_t computed) const;
  void RunStage(uint32_t flight, StageKind kind);
  void StartRouting(uint32_t flight, const StageOut& out);
  void MaybeCombine(uint32_t flight);
  void FinishFlight(uint32_t flight, StageOut* out);
  void CloseFlight(uint32_t flight);
  // The flight will not go on; its living sequences are planned again.
  void Abandon(uint32_t flight);
  void AbandonIfDead(uint32_t flight);
  bool WaitsForExperts(const Flight& flight) const {
    return flight.active && flight.routed && !flight.slots.full();
  }

  // attention_dispatch.cc
  void Assign(uint32_t flight);
  // choice_.shards[i]: where the flight's unassigned[i] goes.
  void ChooseShards(Flight* flight);
  void ResendWhole(uint32_t flight);
  DispatchSource SourceOf(const Flight& flight) const;
  ShardId Alternative(const Flight& flight, ExpertId expert, MonoTime* retry_at) const;
  void QueueCall(uint32_t flight, PlannedCall plan);
  void PumpChannel(Shard* shard, Lane lane);
  void SendCall(Shard* shard, Lane lane, Call* call);
  Call* FindCall(uint64_t id);
  Shard* FindShard(ShardId id);
  // Forgets a call. nullopt: unknown call.
  std::optional<Call> TakeCall(ShardId shard, Lane lane, uint64_t id);
  // The call failed: its unfilled slots become unassigned.
  void Unassign(Call call);
  void CancelCalls(Flight* flight);
  void LoseChannel(Shard* shard, Lane lane);
  void LearnTiming(Shard* shard, const Call& call, const frame::Timing& timing);
  void Avoid(ShardId shard, const Call& call, MonoTime until);
  uint32_t CallBudgetUs(const Flight& flight) const;
  void RetireShards();

  const AttentionConfig config_;
  BufferPool* const pool_;
  const StepLimits limits_;
  MonoTime now_ = 0;
  std::vector<AttentionAction>* out_ = nullptr;
  bool draining_ = false;
  bool plan_wanted_ = false, assign_wanted_ = false;

  KvStore kv_;
  uint64_t next_serial_ = 1;
  std::map<uint64_t, std::unique_ptr<Request>> requests_;        // also ended ones with a choice in flight
  std::map<std::pair<SessionId, uint64_t>, Request*> by_key_;    // not ended
  std::map<std::pair<uint64_t, uint32_t>, Sequence*> schedule_;  // (serial, choice): oldest first
  std::set<std::pair<MonoTime, uint64_t>> deadlines_;
  std::vector<uint64_t> ended_;                               // serials; freed when back from flight
  uint32_t waiting_ = 0;                                      // not accepted
  std::vector<std::pair<SessionId, SessionEvents>> pending_;  // of this event, ascending by session
  size_t tokens_per_emit_ = 0;                                // the most so far

  SchedulerView view_;
  std::vector<Sequence*> view_sequences_;
  StepPlan plan_;
  std::vector<Flight> flights_;

  std::shared_ptr<const PlacementView> placement_;
  std::map<ShardId, Shard> shards_;
  std::map<std::string, ShardStats>
      shard_stats_;          // by name; kept when a shard goes, so that no count is lost
  std::vector<Call> calls_;  // ascending by id
  uint64_t next_call_ = 1;
  // Replicas that refused an expert lately: not asked again before the time.
  std::map<std::pair<ShardId, std::pair<LayerId, ExpertId>>, MonoTime> avoid_;
  // Working memory of one event, kept so that a step allocates nothing.
  std::vector<attention::FlightEntry> entries_back_;
  std::vector<attention::SampleEntry> samples_back_;
  std::vector<ShardLoad> loads_;
  std::vector<uint16_t> wanted_;
  ReplicaChoice choice_;
  std::vector<uint32_t> ready_slots_, missing_;
  std::vector<ShardId> ready_shards_;
  CallPlanner planner_;
  std::vector<PlannedCall> planned_;
  double link_us_ = 0, service_us_ = 0;  // of calls, EWMA

  AttentionStats stats_;
};

}  // namespace consilium
