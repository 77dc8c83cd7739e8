// The router's end of the gRPC transport: one bidirectional stream of raw frames on a connection of its own.
// No gRPC type shows here. Frames are sent from pooled memory without a copy, and copied once on arrival.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/net/dialed_channel.h"

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

class GrpcOpener final : public LinkOpener {
 public:
  // `address`: host:port. All outlive the opener and its links.
  GrpcOpener(std::string address, Lane lane, GrpcIo* io, BufferPool* pool);

  const char* transport() const override { return "grpc"; }
  // Always opens; a shard that cannot be reached ends the stream.
  absl::StatusOr<std::shared_ptr<FrameLink>> Open(ChannelSession* session,
                                                  std::function<void(absl::Status)> ended) override;

 private:
  const std::string address_;
  const Lane lane_;
  GrpcIo* const io_;
  BufferPool* const pool_;
};

}  // namespace consilium
