// The part of an ExpertChannel that is the same over every transport between processes: dial, keep the
// session, dial again.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/expert_channel.h"
#include "common/net/io_loop.h"
#include "common/net/session.h"

namespace consilium {

// One way to reach one lane of one shard.
class LinkOpener {
 public:
  virtual ~LinkOpener() = default;
  virtual const char* transport() const = 0;  // as ExpertChannel::transport
  // Opens one stream: `session` hears OnLinkUp and OnFrame from it, then `ended` is called, once and as the
  // last thing, on a thread of the transport and never within Open. Closing the link ends it soon, without
  // its writes. An error: there is no such way now, and `ended` is not called. Must not block.
  virtual absl::StatusOr<std::shared_ptr<FrameLink>> Open(ChannelSession* session,
                                                          std::function<void(absl::Status)> ended) = 0;
};

class DialedChannel final : public ExpertChannel {
 public:
  // Each attempt takes the first of `openers` (at least one) that opens; after one that ended before the
  // handshake was done, the next attempt begins with the one behind it. After OnDown it tries again, 50 ms to
  // 1 s later. `loop` keeps the time.
  DialedChannel(std::vector<std::unique_ptr<LinkOpener>> openers, Lane lane, RouterHello hello, IoLoop* loop,
                BufferPool* pool, Sink* sink);
  ~DialedChannel() override;
  DialedChannel(const DialedChannel&) = delete;
  DialedChannel& operator=(const DialedChannel&) = delete;

  absl::Status Send(CallId call, std::shared_ptr<const CallBody> body, const CallOptions& options) override;
  void Cancel(CallId call) override;
  const char* transport() const override;

 private:
  void Dial();  // under the lock
  void Ended(const absl::Status& why);
  void WaitAndDial();  // under the lock

  const std::vector<std::unique_ptr<LinkOpener>> openers_;
  IoLoop* const loop_;
  ChannelSession session_;
  std::atomic<size_t> used_{0};  // the opener of the present link

  std::mutex mutex_;  // guards all below
  std::condition_variable done_;
  std::shared_ptr<FrameLink> link_;
  std::optional<IoLoop::TimerId> timer_;
  size_t first_ = 0;  // the opener to try first
  int64_t backoff_ms_ = 0;
  bool closing_ = false;
};

}  // namespace consilium
