// ExpertChannel over gRPC: one bidirectional stream of raw frames on a connection of its own, reconnecting by
// itself. No gRPC type shows here. Frames are sent from pooled memory without a copy, and copied once on
// arrival.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "common/net/expert_channel.h"
#include "common/net/session.h"

namespace consilium {

// The threads that move frames: `threads` completion queues. One for all channels of a process; outlives
// them. They never compute (I4): sink methods only post.
class GrpcIo {
 public:
  explicit GrpcIo(uint32_t threads);
  ~GrpcIo();
  GrpcIo(const GrpcIo&) = delete;
  GrpcIo& operator=(const GrpcIo&) = delete;

  struct Impl;
  Impl* impl() { return impl_.get(); }

 private:
  std::unique_ptr<Impl> impl_;
};

class GrpcChannel final : public ExpertChannel {
 public:
  // Starts to connect to `address` (host:port); the sink hears OnUp when the handshake is done. After OnDown
  // it tries again, 50 ms to 1 s later.
  GrpcChannel(std::string address, Lane lane, RouterHello hello, GrpcIo* io, BufferPool* pool, Sink* sink);
  ~GrpcChannel() override;

  absl::Status Send(CallId call, std::shared_ptr<const CallBody> body, const CallOptions& options) override;
  void Cancel(CallId call) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium
