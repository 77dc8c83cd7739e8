// The local door of an expert shard, beside its gRPC door: streams of routers in the same network namespace
// become FrameServer calls.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/net/session.h"
#include "common/tensor/buffer_pool.h"

namespace consilium {

class LocalServer {
 public:
  // Routers find it by `address`, the shard's as announced (host:port). UNAVAILABLE: it is taken. Serves from
  // one thread of its own; `server` and `pool` outlive it.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const std::string& address, FrameServer* server,
                                                            BufferPool* pool);
  // Ends all streams (frames already written are delivered to peers that read) and stops listening. OnClose
  // was called for every stream.
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;
  LocalServer& operator=(const LocalServer&) = delete;

  // Breaks every stream as a crash would; goes on listening. For tests.
  void BreakStreams();

 private:
  class Listener;
  struct Impl;
  explicit LocalServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium
