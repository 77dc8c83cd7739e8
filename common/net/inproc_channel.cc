#include "common/net/inproc_channel.h"

#include <atomic>
#include <utility>

#include "common/base/status.h"

namespace consilium {

// One in-process stream. `to_router` is held while the router's side is called: after Break returns there are
// no more sink calls. Recursive, since with an inline shard an answer may come while a frame of the same pipe
// is delivered.
struct InprocListener::Pipe : std::enable_shared_from_this<InprocListener::Pipe> {
  struct ToShard final : FrameLink {
    std::weak_ptr<Pipe> pipe;
    void Write(WireFrame frame) override {
      if (auto p = pipe.lock()) p->Deliver(std::move(frame));
    }
    void Close(const absl::Status& why) override {
      if (auto p = pipe.lock()) p->Break(why);
    }
  };
  struct ToRouter final : FrameLink {
    std::weak_ptr<Pipe> pipe;
    void Write(WireFrame frame) override {
      if (auto p = pipe.lock()) p->Answer(std::move(frame));
    }
    void Close(const absl::Status& why) override {
      if (auto p = pipe.lock()) p->Break(why);
    }
  };

  Pipe(ConnId conn, FrameServer* server, ChannelSession* session_in)
      : to_shard_link(std::make_shared<ToShard>()),
        to_router_link(std::make_shared<ToRouter>()),
        server_session(conn, to_router_link, server),
        session(session_in) {}

  void Deliver(WireFrame frame) {
    absl::Status status;
    {
      std::lock_guard lock(to_shard);
      if (broken) return;
      status = server_session.OnFrame(std::move(frame));
    }
    if (!status.ok()) Break(status);
  }

  void Answer(WireFrame frame) {
    absl::Status status;
    {
      std::lock_guard lock(to_router);
      if (broken) return;
      status = session->OnFrame(std::move(frame));
    }
    if (!status.ok()) Break(status);
  }

  void Break(const absl::Status& why) {
    if (broken.exchange(true)) {
      std::lock_guard lock(to_router);  // wait for a call in progress
      return;
    }
    {
      std::lock_guard lock(to_shard);
      server_session.OnLinkDown();
    }
    std::lock_guard lock(to_router);
    session->OnLinkDown(why);
  }

  std::atomic<bool> broken{false};
  std::shared_ptr<ToShard> to_shard_link;
  std::shared_ptr<ToRouter> to_router_link;
  std::recursive_mutex to_shard, to_router;
  ServerSession server_session;
  ChannelSession* const session;
};

void InprocListener::CloseAll() {
  std::vector<std::shared_ptr<Pipe>> pipes;
  {
    std::lock_guard lock(mutex_);
    for (const auto& weak : pipes_) {
      if (auto pipe = weak.lock()) pipes.push_back(std::move(pipe));
    }
    pipes_.clear();
  }
  for (const auto& pipe : pipes) pipe->Break(Unavailable("the shard closed the stream"));
}

InprocChannel::InprocChannel(RouterHello hello, Lane lane, InprocListener* listener, BufferPool* pool,
                             Sink* sink)
    : listener_(listener), session_(std::move(hello), lane, pool, sink) {
  Reconnect();
}

InprocChannel::~InprocChannel() { pipe_->Break(Cancelled("the channel was closed")); }

void InprocChannel::Reconnect() {
  if (pipe_ != nullptr) pipe_->Break(Cancelled("reconnecting"));
  pipe_ =
      std::make_shared<InprocListener::Pipe>(listener_->server_->NextConn(), listener_->server_, &session_);
  pipe_->to_shard_link->pipe = pipe_;
  pipe_->to_router_link->pipe = pipe_;
  {
    std::lock_guard lock(listener_->mutex_);
    std::erase_if(listener_->pipes_, [](const auto& weak) { return weak.expired(); });
    listener_->pipes_.push_back(pipe_);
  }
  session_.OnLinkUp(pipe_->to_shard_link);
}

absl::Status InprocChannel::Send(CallId call, std::shared_ptr<const CallBody> body,
                                 const CallOptions& options) {
  return session_.Send(call, *body, options);
}

void InprocChannel::Cancel(CallId call) { session_.Cancel(call); }

}  // namespace consilium
