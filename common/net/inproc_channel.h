// ExpertChannel within one process: the same session code, frames handed over by reference. A frame goes from
// the caller's thread straight into the FrameServer, an answer from the shard's strand straight into the
// sink.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "common/net/expert_channel.h"
#include "common/net/session.h"

namespace consilium {

// A shard's in-process door. Outlives its channels. Thread-safe.
class InprocListener {
 public:
  explicit InprocListener(FrameServer* server) : server_(server) {}
  // Breaks every stream (as a crash would); channels go down and stay down until Reopen of the channel's
  // Connect.
  void CloseAll();

 private:
  friend class InprocChannel;
  struct Pipe;
  FrameServer* const server_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Pipe>> pipes_;
};

class InprocChannel final : public ExpertChannel {
 public:
  // Connects at once; OnUp may come before the constructor returns.
  InprocChannel(RouterHello hello, Lane lane, InprocListener* listener, BufferPool* pool, Sink* sink);
  ~InprocChannel() override;

  absl::Status Send(CallId call, std::shared_ptr<const CallBody> body, const CallOptions& options) override;
  void Cancel(CallId call) override;
  const char* transport() const override { return session_.up() ? "inprocess" : ""; }
  // After a CloseAll: connects again. In-process there is no timer that would.
  void Reconnect();

 private:
  InprocListener* const listener_;
  ChannelSession session_;
  std::shared_ptr<InprocListener::Pipe> pipe_;
};

}  // namespace consilium
