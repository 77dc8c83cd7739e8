#include "services/expert/expert_core.h"

#include <algorithm>

#include "common/base/status.h"
#include "services/expert/expert_core_internal.h"

namespace consilium {

using frame::RejectCode;

ExpertCore::ExpertCore(ExpertCoreOptions options, BufferPool* pool, ExpertObserver* observer)
    : options_(std::move(options)), pool_(pool), observer_(observer != nullptr ? observer : &no_observer_) {
  CHECK(options_.hidden > 0 && options_.job_slots_max > 0 && options_.credit_rows > 0 &&
        options_.credit_bytes > 0);
  hosts_.resize(size_t{options_.layers} * options_.experts);
  for (uint32_t l = 0; l < options_.layers; ++l) {
    for (uint32_t e = 0; e < options_.experts; ++e) {
      hosts_[size_t{l} * options_.experts + e].key = {LayerId{static_cast<uint16_t>(l)},
                                                      ExpertId{static_cast<uint16_t>(e)}};
    }
  }
  for (const auto& [key, bytes] : options_.expert_bytes) {
    Host* host = FindHost(key);
    CHECK_MSG(host != nullptr, Name(key) + " is outside the model's bounds");
    host->known = true;
    host->bytes = bytes;
  }
}

ExpertCore::~ExpertCore() = default;

void ExpertCore::Handle(MonoTime now, ExpertEvent event, std::vector<ExpertAction>* out) {
  now_ = now;
  std::visit([&](auto& e) { On(e, out); }, event);
  StartJob(out);
  Settle(out);
}

MonoTime ExpertCore::next_deadline() const {
  MonoTime next = kNever;
  for (const auto& [conn, stream] : streams_) {
    if (stream->open > 0) next = std::min(next, stream->quiet_since + options_.heartbeat_us);
  }
  return next;
}

void ExpertCore::On(expert_event::Tick&, Actions* out) {
  for (const auto& [conn, stream] : streams_) {
    if (stream->open == 0 || now_ - stream->quiet_since < options_.heartbeat_us) continue;
    Send(stream.get(), frame::EncodeHeartbeat(TimingNow(), pool_), out);
  }
}

void ExpertCore::Bind(Stream* stream, const RouterHello& hello, std::vector<BindCode>* models,
                      std::vector<BindCode>* classes) {
  for (const RouterHello::Model& m : hello.models) {
    BindCode code = BindCode::kOk;
    if (m.manifest != options_.manifest)
      code = BindCode::kUnknownModel;
    else if (m.hidden != options_.hidden || m.dtype_in != static_cast<uint8_t>(options_.dtype_in) ||
             m.dtype_out != static_cast<uint8_t>(options_.dtype_out)) {
      code = BindCode::kClassMismatch;
    }
    stream->models[m.ix] = code;
    models->push_back(code);
  }
  for (const RouterHello::Class& c : hello.classes) {
    const bool same = c.name == options_.class_name && c.fingerprint == options_.fingerprint;
    stream->classes[c.ix] = same ? BindCode::kOk : BindCode::kClassMismatch;
    classes->push_back(stream->classes[c.ix]);
  }
}

void ExpertCore::On(expert_event::ConnOpened& e, Actions* out) {
  CHECK_MSG(!streams_.contains(e.conn), "a connection id was reused");
  auto stream = std::make_unique<Stream>();
  stream->conn = e.conn;
  stream->lane = e.lane;
  stream->announced = Credit{options_.credit_rows, options_.credit_bytes};
  stream->quiet_since = now_;
  expert_action::Welcome welcome;
  Bind(stream.get(), e.hello, &welcome.models, &welcome.classes);
  welcome.conn = e.conn;
  welcome.hello = std::move(e.hello);
  welcome.credit = stream->announced;
  out->emplace_back(std::move(welcome));
  if (draining_) Send(stream.get(), frame::EncodeBare(frame::Kind::kDrain, pool_), out);
  streams_.emplace(e.conn, std::move(stream));
}

void ExpertCore::On(expert_event::Bound& e, Actions*) {
  const auto it = streams_.find(e.conn);
  if (it == streams_.end()) return;
  std::vector<BindCode> models, classes;
  Bind(it->second.get(), e.more, &models, &classes);
}

void ExpertCore::On(expert_event::ConnClosed& e, Actions*) {
  const auto it = streams_.find(e.conn);
  if (it == streams_.end()) return;
  Stream* stream = it->second.get();
  while (Call* call = stream->calls.head) {
    observer_->OnDropped("closed");
    if (call->queued) {
      Unqueue(call);
      Forget(call);
      continue;
    }
    // In the running job, which reads its rows: kept until JobDone.
    UnlinkFromStream(call);
  }
  streams_.erase(it);
}

void ExpertCore::On(expert_event::FrameIn& e, Actions* out) {
  const auto it = streams_.find(e.conn);
  if (it == streams_.end()) return;  // closed by us, frames were still on their way
  Stream* stream = it->second.get();
  if (e.frame.size() >= frame::kHeaderBytes &&
      e.frame.head()[5] == static_cast<std::byte>(frame::Kind::kCall)) {
    OnCall(stream, std::move(e.frame), out);
    return;
  }
  frame::View view;
  const absl::Status decoded = frame::Decode(e.frame, &view);
  if (decoded.ok() && view.header.kind == frame::Kind::kCancel) {
    OnCancel(stream, view.header.call, out);
    return;
  }
  out->emplace_back(
      expert_action::Close{e.conn, decoded.ok() ? InvalidArgument("not a CALL or CANCEL frame") : decoded});
}

void ExpertCore::OnCall(Stream* stream, WireFrame frame, Actions* out) {
  Call* call = NewCall();
  call->frame = std::move(frame);
  const absl::Status decoded = frame::Decode(call->frame, &call->view);
  const frame::Header& header = call->view.header;
  if (!call->view.trusted) {
    FreeCall(call);
    out->emplace_back(expert_action::Close{stream->conn, decoded});
    return;
  }
  if (header.call.value <= stream->last_call) {
    observer_->OnDropped("duplicate");
    FreeCall(call);
    return;
  }
  stream->last_call = header.call.value;
  const size_t bytes = call->frame.size();
  const bool over = stream->received.rows + header.n_rows > stream->announced.rows ||
                    stream->received.bytes + bytes > stream->announced.bytes;
  stream->received.rows += header.n_rows;
  stream->received.bytes += bytes;
  Refusal refusal;
  if (!decoded.ok()) {
    const bool corrupt = decoded.code() == absl::StatusCode::kDataLoss;
    refusal = {corrupt ? RejectCode::kCorrupt : RejectCode::kBadFrame, 0, Message(decoded)};
  } else if (over) {
    refusal = {RejectCode::kOverCredit, 0, "rows or bytes beyond the credit given"};
  } else if (!Refuse(*stream, call->view, &refusal)) {
    observer_->OnCallIn(stream->lane, header.n_rows, header.n_slots, bytes);
    Enqueue(stream, call);
    return;
  }
  stream->returned.rows += header.n_rows;
  stream->returned.bytes += bytes;
  Reject(stream, header, refusal.code, refusal.arg, refusal.text, out);
  AnnounceCredit(stream, out);
  FreeCall(call);
}

void ExpertCore::OnCancel(Stream* stream, CallId id, Actions* out) {
  for (Call* call = stream->calls.head; call != nullptr; call = call->stream_next) {
    if (call->view.header.call != id || call->cancelled) continue;
    observer_->OnDropped("cancelled");
    call->cancelled = true;
    if (!call->queued) return;  // in the running job: its result is thrown away
    Unqueue(call);
    AnnounceCredit(stream, out);
    Forget(call);
    return;
  }
}

// True: the call is not served, and why.
bool ExpertCore::Refuse(const Stream& stream, const frame::View& view, Refusal* refusal) const {
  const frame::Header& h = view.header;
  if (draining_) {
    *refusal = {RejectCode::kDraining, 0, "the shard is draining"};
    return true;
  }
  const auto model = stream.models.find(h.model.value);
  if (model == stream.models.end() || model->second == BindCode::kUnknownModel) {
    *refusal = {RejectCode::kUnknownModel, 0,
                "model index " + std::to_string(h.model.value) + " is not bound to a model here"};
    return true;
  }
  const auto cls = stream.classes.find(h.class_ix);
  if (cls == stream.classes.end() || cls->second != BindCode::kOk || model->second != BindCode::kOk) {
    *refusal = {RejectCode::kClassMismatch, 0,
                "class index " + std::to_string(h.class_ix) + ", expected class " + options_.class_name};
    return true;
  }
  if (h.hidden != options_.hidden || h.dtype_in != options_.dtype_in || h.dtype_out != options_.dtype_out) {
    *refusal = {
        RejectCode::kBadFrame, 40,
        "rows of hidden " + std::to_string(options_.hidden) + " expected, got " + std::to_string(h.hidden)};
    return true;
  }
  if (queued_rows_ + h.n_rows > options_.queued_rows_max) {
    *refusal = {RejectCode::kOverloaded, 1000, "the shard's queue is full"};
    return true;
  }
  bool refused = false;
  ForEachExpert(view.slots, [&](ExpertId expert, uint32_t, uint32_t) {
    refused = RefuseExpert({h.layer, expert}, refusal);
    return !refused;
  });
  return refused;
}

bool ExpertCore::RefuseExpert(ExpertKey key, Refusal* refusal) const {
  const Host* host = FindHost(key);
  const HostState state = host == nullptr ? HostState::kAbsent : host->state;
  switch (state) {
    case HostState::kReady:
      return false;
    case HostState::kAbsent:
      *refusal = {RejectCode::kNotHosted, 0, Name(key) + " is not here"};
      return true;
    case HostState::kDraining:
      *refusal = {RejectCode::kDraining, 0, Name(key) + " is draining"};
      return true;
    case HostState::kLoading:
    case HostState::kVerified: {
      const double eta = load_us_ * loads_pending_;
      *refusal = {RejectCode::kLoading, static_cast<uint32_t>(std::min(eta, 4e9)), Name(key) + " is loading"};
      return true;
    }
  }
  return false;
}

void ExpertCore::Reject(Stream* stream, const frame::Header& call, RejectCode code, uint32_t arg,
                        std::string_view text, Actions* out) {
  observer_->OnReject(code);
  Send(stream, frame::EncodeReject(call.call, call.epoch, code, arg, text, pool_), out);
}

void ExpertCore::Send(Stream* stream, BufferRef frame, Actions* out) {
  stream->quiet_since = now_;
  out->emplace_back(expert_action::Send{stream->conn, std::move(frame)});
}

ExpertCore::Call* ExpertCore::NewCall() {
  if (idle_calls_.empty()) {
    call_arena_.push_back(std::make_unique<Call>());
    idle_calls_.reserve(call_arena_.size());
    return call_arena_.back().get();
  }
  Call* call = idle_calls_.back();
  idle_calls_.pop_back();
  return call;
}

void ExpertCore::FreeCall(Call* call) {
  std::vector<frame::ResultFrame> results = std::move(call->results);
  results.clear();
  *call = Call{};
  call->results = std::move(results);
  idle_calls_.push_back(call);
}

void ExpertCore::Enqueue(Stream* stream, Call* call) {
  const frame::Header& h = call->view.header;
  call->stream = stream;
  call->lane = stream->lane;
  call->arrived = now_;
  call->deadline = now_ + h.budget_us;
  call->queued = true;
  CallList& lane = lanes_[static_cast<size_t>(call->lane)];
  call->queue_prev = lane.tail;
  (lane.tail != nullptr ? lane.tail->queue_next : lane.head) = call;
  lane.tail = call;
  call->stream_prev = stream->calls.tail;
  (stream->calls.tail != nullptr ? stream->calls.tail->stream_next : stream->calls.head) = call;
  stream->calls.tail = call;
  if (stream->open++ == 0) stream->quiet_since = now_;
  ++calls_open_;
  queued_rows_ += h.n_rows;
  ForEachExpert(call->view.slots,
                [&](ExpertId expert, uint32_t, uint32_t) { ++FindHost({h.layer, expert})->calls; });
}

void ExpertCore::Unqueue(Call* call) {
  CallList& lane = lanes_[static_cast<size_t>(call->lane)];
  (call->queue_prev != nullptr ? call->queue_prev->queue_next : lane.head) = call->queue_next;
  (call->queue_next != nullptr ? call->queue_next->queue_prev : lane.tail) = call->queue_prev;
  call->queue_prev = call->queue_next = nullptr;
  call->queued = false;
  queued_rows_ -= call->view.header.n_rows;
  call->stream->returned.rows += call->view.header.n_rows;
  call->stream->returned.bytes += call->frame.size();
}

void ExpertCore::UnlinkFromStream(Call* call) {
  Stream* stream = call->stream;
  (call->stream_prev != nullptr ? call->stream_prev->stream_next : stream->calls.head) = call->stream_next;
  (call->stream_next != nullptr ? call->stream_next->stream_prev : stream->calls.tail) = call->stream_prev;
  call->stream_prev = call->stream_next = nullptr;
  call->stream = nullptr;
  --stream->open;
}

void ExpertCore::Forget(Call* call) {
  if (call->stream != nullptr) UnlinkFromStream(call);
  const LayerId layer = call->view.header.layer;
  ForEachExpert(call->view.slots, [&](ExpertId expert, uint32_t, uint32_t) {
    Host* host = FindHost({layer, expert});
    if (--host->calls == 0 && host->state == HostState::kDraining) settled_.push_back(host);
  });
  --calls_open_;
  FreeCall(call);
}

// A CREDIT frame when at least a quarter of the window is not announced.
void ExpertCore::AnnounceCredit(Stream* stream, Actions* out) {
  const Credit allowed{options_.credit_rows + stream->returned.rows,
                       options_.credit_bytes + stream->returned.bytes};
  if ((allowed.rows - stream->announced.rows) * 4 < options_.credit_rows &&
      (allowed.bytes - stream->announced.bytes) * 4 < options_.credit_bytes) {
    return;
  }
  stream->announced = allowed;
  Send(stream, frame::EncodeCredit(allowed.rows, allowed.bytes, pool_), out);
}

}  // namespace consilium
