#include "common/net/session.h"

#include <algorithm>
#include <utility>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {
namespace {

std::string Name(CallId call) { return "call " + std::to_string(call.value); }

absl::Status CheckSize(const WireFrame& frame) {
  if (frame.size() <= kFrameBytesMax + kFrameSlackBytes) return absl::OkStatus();
  return ResourceExhausted("frame too large: expected at most " +
                           std::to_string(kFrameBytesMax + kFrameSlackBytes) + " bytes, got " +
                           std::to_string(frame.size()));
}

std::string_view BindName(BindCode code) {
  switch (code) {
    case BindCode::kOk:
      return "OK";
    case BindCode::kClassMismatch:
      return "CLASS_MISMATCH";
    case BindCode::kUnknownModel:
      return "UNKNOWN_MODEL";
  }
  return "unknown code";
}

}  // namespace

ChannelSession::ChannelSession(RouterHello hello, Lane lane, BufferPool* pool, ExpertChannel::Sink* sink)
    : hello_(std::move(hello)), lane_(lane), pool_(pool), sink_(sink) {}

void ChannelSession::OnLinkUp(std::shared_ptr<FrameLink> link) {
  {
    std::lock_guard lock(mutex_);
    link_ = link;
    up_ = false;
    open_.clear();
    last_call_ = 0;
    sent_ = credit_ = Credit{};
  }
  link->Write(WireFrame{EncodeHello(hello_, lane_, pool_), false, {}});
}

void ChannelSession::OnLinkDown(const absl::Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (link_ == nullptr) return;
    link_.reset();
    up_ = false;
    open_.clear();
  }
  sink_->OnDown(why);
}

absl::Status ChannelSession::OnFrame(WireFrame frame) {
  RETURN_IF_ERROR(CheckSize(frame));
  frame::View view;
  const absl::Status decoded = frame::Decode(frame, &view);
  if (!view.trusted) return decoded;
  const frame::Kind kind = view.header.kind;
  const bool handshake_done = up();
  if (!handshake_done && kind != frame::Kind::kWelcome) {
    return InvalidArgument("the first frame of a shard must be WELCOME, got kind " +
                           std::to_string(static_cast<int>(kind)));
  }
  if (!decoded.ok()) {
    if (kind != frame::Kind::kResult) return decoded;
    const bool corrupt = decoded.code() == absl::StatusCode::kDataLoss;
    RejectLocally(view.header, corrupt ? frame::RejectCode::kCorrupt : frame::RejectCode::kInternal, decoded);
    return absl::OkStatus();
  }
  switch (kind) {
    case frame::Kind::kWelcome:
      if (handshake_done) return InvalidArgument("a second WELCOME");
      return OnWelcome(view);
    case frame::Kind::kResult:
      return OnResult(view, std::move(frame));
    case frame::Kind::kReject:
      return OnReject(view);
    case frame::Kind::kCredit: {
      Credit credit{view.credit_rows, view.credit_bytes};
      {
        std::lock_guard lock(mutex_);
        credit_.rows = credit.rows = std::max(credit_.rows, credit.rows);
        credit_.bytes = credit.bytes = std::max(credit_.bytes, credit.bytes);
      }
      sink_->OnCredit(credit);
      return absl::OkStatus();
    }
    case frame::Kind::kHeartbeat:
      sink_->OnHeartbeat(view.timing);
      return absl::OkStatus();
    case frame::Kind::kDrain:
      sink_->OnDrain();
      return absl::OkStatus();
    case frame::Kind::kBye:
      return Unavailable("the shard said BYE");
    case frame::Kind::kHello:
    case frame::Kind::kBind:
    case frame::Kind::kCall:
    case frame::Kind::kCancel:
      return InvalidArgument("a shard must not send kind " + std::to_string(static_cast<int>(kind)));
  }
  return absl::OkStatus();  // an unknown kind that may be ignored
}

absl::Status ChannelSession::OnWelcome(const frame::View& view) {
  WelcomeInfo info;
  RETURN_IF_ERROR(ParseWelcome(view.payload, &info));
  if (info.wire != frame::kVersion) {
    return FailedPrecondition("WELCOME: wire version, expected 1, got " + std::to_string(info.wire));
  }
  if (info.models.size() != hello_.models.size() || info.classes.size() != hello_.classes.size()) {
    return InvalidArgument("WELCOME: answers do not fit the bindings of HELLO");
  }
  // The class first: where it differs, the form of the model's rows may differ as well.
  for (size_t i = 0; i < info.classes.size(); ++i) {
    if (info.classes[i] == BindCode::kOk) continue;
    return FailedPrecondition("the shard refused class " + hello_.classes[i].name + ": " +
                              std::string(BindName(info.classes[i])) +
                              " (both need the same numerics class and fingerprint)");
  }
  for (size_t i = 0; i < info.models.size(); ++i) {
    if (info.models[i] == BindCode::kOk) continue;
    return FailedPrecondition("the shard refused model " + std::to_string(hello_.models[i].ix) + ": " +
                              std::string(BindName(info.models[i])));
  }
  {
    std::lock_guard lock(mutex_);
    if (link_ == nullptr) return Unavailable("the link is gone");
    up_ = true;
    credit_ = info.credit;
  }
  sink_->OnUp(info.shard_id, info.incarnation, info.credit);
  return absl::OkStatus();
}

ChannelSession::Open* ChannelSession::FindOpen(CallId call) {
  const auto it = std::lower_bound(open_.begin(), open_.end(), call.value,
                                   [](const Open& o, uint64_t id) { return o.call < id; });
  return it == open_.end() || it->call != call.value ? nullptr : &*it;
}

bool ChannelSession::CloseOpen(CallId call) {
  std::lock_guard lock(mutex_);
  Open* open = FindOpen(call);
  if (open == nullptr) return false;
  open_.erase(open_.begin() + (open - open_.data()));
  return true;
}

absl::Status ChannelSession::OnResult(const frame::View& view, WireFrame frame) {
  const bool last = (view.header.flags & frame::kLast) != 0;
  uint32_t slots = 0;
  for (const frame::Range& r : view.ranges) slots += r.n_slots;
  const frame::Range& end = view.ranges.back();
  std::string wrong;
  {
    std::lock_guard lock(mutex_);
    Open* open = FindOpen(view.header.call);
    if (open == nullptr) return absl::OkStatus();  // cancelled or answered before: at-least-once
    open->got_slots += slots;
    if (end.first_slot + end.n_slots > open->n_slots || open->got_slots > open->n_slots ||
        (last && open->got_slots != open->n_slots)) {
      wrong = "RESULT of " + Name(view.header.call) + ": expected " + std::to_string(open->n_slots) +
              " slots, got " + std::to_string(open->got_slots);
    } else if (view.header.hidden != open->hidden || view.header.dtype_out != open->dtype_out) {
      wrong = "RESULT of " + Name(view.header.call) + ": other row type than asked for";
    } else if (last) {
      open_.erase(open_.begin() + (open - open_.data()));
    }
  }
  if (!wrong.empty()) {
    RejectLocally(view.header, frame::RejectCode::kInternal, Internal(wrong));
    return absl::OkStatus();
  }
  CallResult result;
  result.call = view.header.call;
  result.last = last;
  result.ranges = view.ranges;
  result.timing = view.timing;
  result.payload = view.payload.data();
  result.payload_bytes = view.payload.size();
  result.buffer = std::move(frame.buffer);
  sink_->OnResult(std::move(result));
  return absl::OkStatus();
}

absl::Status ChannelSession::OnReject(const frame::View& view) {
  if (!CloseOpen(view.header.call)) return absl::OkStatus();
  sink_->OnReject(
      CallReject{view.header.call, view.reject_code, view.reject_arg, std::string(view.reject_text)});
  return absl::OkStatus();
}

void ChannelSession::RejectLocally(const frame::Header& header, frame::RejectCode code,
                                   const absl::Status& why) {
  if (!CloseOpen(header.call)) return;
  sink_->OnReject(CallReject{header.call, code, 0, Message(why)});
}

absl::Status ChannelSession::Send(CallId call, const CallBody& body, const CallOptions& options) {
  if (options.budget_us == 0) return InvalidArgument(Name(call) + ": budget_us is 0");
  if (body.frame_bytes() > kFrameBytesMax) {
    return InvalidArgument(Name(call) + ": frame of " + std::to_string(body.frame_bytes()) +
                           " bytes, expected at most " + std::to_string(kFrameBytesMax));
  }
  std::shared_ptr<FrameLink> link;
  WireFrame wire;
  {
    std::lock_guard lock(mutex_);
    if (!up_) return Unavailable("the channel is down");
    if (call.value <= last_call_) {
      return InvalidArgument(Name(call) + ": ids must rise, the last was " + std::to_string(last_call_));
    }
    if (sent_.rows + body.n_rows() > credit_.rows || sent_.bytes + body.frame_bytes() > credit_.bytes) {
      return ResourceExhausted(Name(call) + ": no credit for " + std::to_string(body.n_rows()) + " rows, " +
                               std::to_string(body.frame_bytes()) + " bytes");
    }
    wire = body.Frame(call, options.epoch, options.budget_us, options.flags);
    frame::Header header = body.header();
    sent_.rows += body.n_rows();
    sent_.bytes += body.frame_bytes();
    last_call_ = call.value;
    open_.push_back(Open{call.value, body.n_slots(), 0, header.hidden, header.dtype_out});
    link = link_;
  }
  link->Write(std::move(wire));
  return absl::OkStatus();
}

void ChannelSession::Cancel(CallId call) {
  std::shared_ptr<FrameLink> link;
  {
    std::lock_guard lock(mutex_);
    Open* open = FindOpen(call);
    if (open == nullptr) return;
    open_.erase(open_.begin() + (open - open_.data()));
    link = link_;
  }
  link->Write(WireFrame{frame::EncodeCancel(call, pool_), false, {}});
}

bool ChannelSession::up() const {
  std::lock_guard lock(mutex_);
  return up_;
}

size_t ChannelSession::calls_open() const {
  std::lock_guard lock(mutex_);
  return open_.size();
}

ServerSession::ServerSession(ConnId conn, std::shared_ptr<FrameLink> link, FrameServer* server)
    : conn_(conn), link_(std::move(link)), server_(server) {}

absl::Status ServerSession::OnHello(const WireFrame& frame) {
  frame::View view;
  RETURN_IF_ERROR(frame::Decode(frame, &view));
  if (view.header.kind != frame::Kind::kHello) {
    return InvalidArgument("the first frame of a router must be HELLO, got kind " +
                           std::to_string(static_cast<int>(view.header.kind)));
  }
  RouterHello hello;
  Lane lane = Lane::kDecode;
  RETURN_IF_ERROR(ParseHello(view.payload, &hello, &lane));
  open_ = true;
  server_->OnOpen(conn_, std::move(link_), lane, std::move(hello));
  return absl::OkStatus();
}

absl::Status ServerSession::OnFrame(WireFrame frame) {
  RETURN_IF_ERROR(CheckSize(frame));
  if (closed_) return Unavailable("the stream is closed");
  if (!open_) return OnHello(frame);
  if (frame.size() < frame::kHeaderBytes) return InvalidArgument("a frame shorter than a header");
  switch (static_cast<frame::Kind>(frame.head()[5])) {
    case frame::Kind::kCall:
    case frame::Kind::kCancel:
      server_->OnFrame(conn_, std::move(frame));
      return absl::OkStatus();
    default:
      break;
  }
  frame::View view;
  RETURN_IF_ERROR(frame::Decode(frame, &view));
  switch (view.header.kind) {
    case frame::Kind::kBind: {
      RouterHello more;
      Lane lane = Lane::kDecode;
      RETURN_IF_ERROR(ParseHello(view.payload, &more, &lane));
      server_->OnBind(conn_, std::move(more));
      return absl::OkStatus();
    }
    case frame::Kind::kBye:
      return Unavailable("the router said BYE");
    case frame::Kind::kHello:
    case frame::Kind::kWelcome:
    case frame::Kind::kResult:
    case frame::Kind::kReject:
    case frame::Kind::kCredit:
    case frame::Kind::kHeartbeat:
    case frame::Kind::kDrain:
      return InvalidArgument("a router must not send kind " +
                             std::to_string(static_cast<int>(view.header.kind)));
    case frame::Kind::kCall:
    case frame::Kind::kCancel:
      break;
  }
  return absl::OkStatus();  // an unknown kind that may be ignored
}

void ServerSession::OnLinkDown() {
  if (closed_) return;
  closed_ = true;
  link_.reset();  // a link that owns this session must not be owned by it
  if (open_) server_->OnClose(conn_);
}

}  // namespace consilium
