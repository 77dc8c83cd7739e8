// The gRPC door of an expert shard: Exchange streams become FrameServer calls, Describe is answered from a
// callback. Both are served by the same queues: a server with gRPC's own callback threads beside them would
// have these take the data plane's events and hand each over.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/session.h"

namespace consilium {

// Plain form of consilium.expert.v1.ShardDescription.
struct ShardDescription {
  uint32_t shard_id = 0;
  std::string name, version, class_name;
  uint64_t fingerprint = 0;
  struct Expert {
    uint16_t layer = 0, expert = 0;
    uint8_t state = 0;  // HostedExpert.State
  };
  std::vector<Expert> experts;
};

class GrpcFrameServer {
 public:
  // Listens on host:port (port 0: any). `describe` is called from a queue's thread. UNAVAILABLE: the port is
  // busy.
  static absl::StatusOr<std::unique_ptr<GrpcFrameServer>> Start(const std::string& address, uint32_t threads,
                                                                FrameServer* server, BufferPool* pool,
                                                                std::function<ShardDescription()> describe);
  // Ends all streams (frames already written are delivered) and stops listening. OnClose was called for every
  // stream.
  ~GrpcFrameServer();
  GrpcFrameServer(const GrpcFrameServer&) = delete;
  GrpcFrameServer& operator=(const GrpcFrameServer&) = delete;

  std::string address() const;  // host:port really bound
  int port() const;
  // Breaks every stream as a crash would; goes on listening. For tests.
  void BreakStreams();

 private:
  struct Impl;
  explicit GrpcFrameServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Asks a shard who it is. DEADLINE_EXCEEDED, UNAVAILABLE.
absl::StatusOr<ShardDescription> DescribeShard(const std::string& address, uint32_t timeout_ms);

}  // namespace consilium
