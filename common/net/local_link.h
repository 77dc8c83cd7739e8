// The local transport: a Unix stream socket in the abstract namespace between processes that share a network
// namespace (one host, or one pod). Frames are those of proto/WIRE.md, each behind its length as u32. This is
// one connected socket; both ends use it.
#pragma once
#include <sys/un.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/net/frame_queue.h"
#include "common/net/io_loop.h"
#include "common/net/session.h"
#include "common/tensor/buffer_pool.h"

namespace consilium {
namespace local_net {

struct Address {
  sockaddr_un name;
  socklen_t bytes;
};
// Of the shard that is announced as host:port. The port is one listener's in a network namespace, so the name
// is, too; it needs no file and ends with its socket.
Address AddressOf(const std::string& host_port);
// Bytes per socket that the kernel may hold, as far as it allows: two whole frames, so that a peer that is
// slow for a moment costs no second round through epoll.
void SetBuffers(int fd);
// The peer is root or of our own user: any process of the network namespace can use any abstract name.
bool PeerIsAllowed(int fd);

}  // namespace local_net

class LocalLink final : public FrameLink,
                        public IoLoop::Watcher,
                        public std::enable_shared_from_this<LocalLink> {
 public:
  struct User {
    std::function<absl::Status(WireFrame)> on_frame;  // an error closes the link with it
    std::function<void(absl::Status)> on_end;         // once, the last call
  };
  enum class AtClose { kFinishWrites, kDropWrites };

  // Owns `fd`, a connected non-blocking socket.
  LocalLink(int fd, AtClose at_close, IoLoop* loop, BufferPool* pool);
  ~LocalLink() override;

  // Once: `user` is called on the loop's thread from now on, and the loop keeps *this until the end.
  void Start(User user);

  // On the caller's thread as far as the socket takes it, the rest from the loop. More than
  // kLinkQueueFramesMax frames waiting end the link.
  void Write(WireFrame frame) override;
  void Close(const absl::Status& why) override;
  // Close, but what waits is dropped.
  void Break(const absl::Status& why);

 private:
  void OnReady(uint32_t events) override;
  // Bytes of `frame` from its `from`th on that the socket took (the length counts as its first 4); -1: the
  // socket is broken.
  ssize_t SendFrom(const WireFrame& frame, size_t from);
  void SendWaiting();  // these three under the lock
  void CloseLocked(const absl::Status& why);
  void BreakLocked(const absl::Status& why);
  void WatchFor();
  void Receive();
  absl::Status Take(size_t bytes);
  absl::Status BeginFrame();
  void End(absl::Status why);

  const int fd_;
  const AtClose at_close_;
  IoLoop* const loop_;
  BufferPool* const pool_;

  // The loop's thread only.
  User user_;
  std::byte length_[4] = {};
  size_t length_got_ = 0;
  BufferRef incoming_;  // valid: the length is known
  size_t incoming_got_ = 0;

  std::mutex mutex_;  // guards all below
  bool started_ = false, ended_ = false;
  std::atomic<bool> closing_{false};  // written under the lock
  absl::Status why_;
  FrameQueue queue_;
  size_t front_sent_ = 0;
  uint32_t watched_ = 0;
};

}  // namespace consilium
