// The protocol of proto/WIRE.md over any transport: handshake, call tracking, credit, corrupt results.
// Transports (in-process, gRPC, the simulator's network) only move frames: they implement FrameLink and call
// the sessions.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/net/expert_channel.h"
#include "common/net/frame.h"
#include "common/tensor/buffer_pool.h"

namespace consilium {

// One direction of a stream: whole frames, in order, each at most once. Thread-safe.
class FrameLink {
 public:
  virtual ~FrameLink() = default;
  // Never blocks. On a closed link the frame is dropped.
  virtual void Write(WireFrame frame) = 0;
  // Ends both directions; the peer sees the end after the frames written before.
  virtual void Close(const absl::Status& why) = 0;
};

// Client side of one stream, kept over reconnects. OnLinkUp, OnFrame and OnLinkDown are called by the
// transport, one at a time; Send and Cancel by the router's strand, at any time, also from within the sink's
// methods.
class ChannelSession {
 public:
  // `pool` makes control frames; `sink` is called from the transport's calls, without a lock held.
  ChannelSession(RouterHello hello, Lane lane, BufferPool* pool, ExpertChannel::Sink* sink);
  ChannelSession(const ChannelSession&) = delete;
  ChannelSession& operator=(const ChannelSession&) = delete;

  // A new link is open: writes HELLO to it.
  void OnLinkUp(std::shared_ptr<FrameLink> link);
  // An error: framing is lost or the shard refused us; close the link with it, then call OnLinkDown.
  absl::Status OnFrame(WireFrame frame);
  // Idempotent. The sink hears OnDown, also when the handshake was not done.
  void OnLinkDown(const absl::Status& why);

  absl::Status Send(CallId call, const CallBody& body, const CallOptions& options);
  void Cancel(CallId call);

  bool up() const;
  size_t calls_open() const;

 private:
  struct Open {
    uint64_t call = 0;
    uint32_t n_slots = 0, got_slots = 0;
    uint32_t hidden = 0;
    frame::DtypeCode dtype_out = frame::DtypeCode::kNone;
  };
  absl::Status OnWelcome(const frame::View& view);
  absl::Status OnResult(const frame::View& view, WireFrame frame);
  absl::Status OnReject(const frame::View& view);
  void RejectLocally(const frame::Header& header, frame::RejectCode code, const absl::Status& why);
  Open* FindOpen(CallId call);
  bool CloseOpen(CallId call);  // false: unknown call, the answer is dropped

  const RouterHello hello_;
  const Lane lane_;
  BufferPool* const pool_;
  ExpertChannel::Sink* const sink_;

  mutable std::mutex mutex_;  // guards all below
  std::shared_ptr<FrameLink> link_;
  bool up_ = false;
  std::vector<Open> open_;  // ascending by call
  uint64_t last_call_ = 0;
  Credit sent_, credit_;
};

// What a shard's shell implements. Called by transports from their reader threads; per stream one call at a
// time. Must not block: post to the strand.
class FrameServer {
 public:
  virtual ~FrameServer() = default;
  // For a new stream: the doors of one shard share the count.
  ConnId NextConn() { return next_conn_.fetch_add(1); }
  // HELLO was read. Answer with EncodeWelcome through `link`.
  virtual void OnOpen(ConnId conn, std::shared_ptr<FrameLink> link, Lane lane, RouterHello hello) = 0;
  virtual void OnBind(ConnId conn, RouterHello more) = 0;
  virtual void OnFrame(ConnId conn, WireFrame frame) = 0;  // CALL, CANCEL and whatever does not decode
  virtual void OnClose(ConnId conn) = 0;                   // once after OnOpen

 private:
  std::atomic<ConnId> next_conn_{1};
};

// Server side of one stream.
class ServerSession {
 public:
  ServerSession(ConnId conn, std::shared_ptr<FrameLink> link, FrameServer* server);
  // An error: the peer does not speak the protocol; close the link with it, then call OnLinkDown.
  absl::Status OnFrame(WireFrame frame);
  void OnLinkDown();  // idempotent

 private:
  absl::Status OnHello(const WireFrame& frame);

  const ConnId conn_;
  std::shared_ptr<FrameLink> link_;
  FrameServer* const server_;
  bool open_ = false, closed_ = false;
};

// Handshake payloads (protobuf inside session_messages.cc only).
struct WelcomeInfo {
  uint32_t wire = frame::kVersion;
  uint32_t shard_id = 0;
  uint64_t incarnation = 0;
  std::vector<BindCode> models, classes;  // in the order of the HELLO
  Credit credit;
  Epoch epoch;
};
BufferRef EncodeHello(const RouterHello& hello, Lane lane, BufferPool* pool);
BufferRef EncodeBind(const RouterHello& more, Lane lane, BufferPool* pool);
BufferRef EncodeWelcome(const RouterHello& hello, const WelcomeInfo& info, BufferPool* pool);
// Of a HELLO's or BIND's payload. INVALID_ARGUMENT; FAILED_PRECONDITION: no common wire version.
absl::Status ParseHello(std::span<const std::byte> payload, RouterHello* hello, Lane* lane);
absl::Status ParseWelcome(std::span<const std::byte> payload, WelcomeInfo* info);

}  // namespace consilium
