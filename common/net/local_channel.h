// The router's end of the local transport: opens a stream to the door (local_server.h) of a shard that shares
// our network namespace.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "common/net/dialed_channel.h"
#include "common/net/local_link.h"

namespace consilium {

class LocalOpener final : public LinkOpener {
 public:
  // `address`: the shard's as announced, host:port. Loop and pool outlive the opener and its links.
  LocalOpener(std::string address, IoLoop* loop, BufferPool* pool);

  const char* transport() const override { return "local"; }
  // Fails at once with UNAVAILABLE where no such door is, or where another user than ours or root holds it.
  absl::StatusOr<std::shared_ptr<FrameLink>> Open(ChannelSession* session,
                                                  std::function<void(absl::Status)> ended) override;

 private:
  const std::string address_;
  IoLoop* const loop_;
  BufferPool* const pool_;
};

}  // namespace consilium
