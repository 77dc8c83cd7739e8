// How a router reaches shards: decides the transport of each stream.
#pragma once
#include <memory>
#include <string>

#include "common/net/dialed_channel.h"
#include "common/net/grpc_channel.h"

namespace consilium {

// One for all channels of a process; outlives them. Each time a stream is opened, the shard's local socket
// (local_channel.h) is tried first, else gRPC.
class ExpertDialer {
 public:
  // `local`: the local socket may be used.
  ExpertDialer(bool local, BufferPool* pool) : local_(local), pool_(pool) {}
  ExpertDialer(const ExpertDialer&) = delete;
  ExpertDialer& operator=(const ExpertDialer&) = delete;

  // `address`: the shard's as announced, host:port. The sink hears OnUp when the handshake is done.
  std::unique_ptr<ExpertChannel> Connect(const std::string& address, Lane lane, RouterHello hello,
                                         ExpertChannel::Sink* sink);

 private:
  const bool local_;
  BufferPool* const pool_;
  IoLoop loop_;
  GrpcIo grpc_{1};
};

}  // namespace consilium
