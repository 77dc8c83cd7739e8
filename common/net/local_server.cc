#include "common/net/local_server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/io_loop.h"
#include "common/net/local_link.h"

namespace consilium {

// Accepts streams and knows those that have not ended.
class LocalServer::Listener final : public IoLoop::Watcher, public std::enable_shared_from_this<Listener> {
 public:
  Listener(int fd, IoLoop* loop, FrameServer* server, BufferPool* pool)
      : fd_(fd),
        loop_(loop),
        server_(server),
        pool_(pool),
        spare_fd_(open("/dev/null", O_RDONLY | O_CLOEXEC)) {}
  ~Listener() override {
    close(fd_);
    if (spare_fd_ >= 0) close(spare_fd_);
  }

  void Start() { loop_->Watch(fd_, EPOLLIN, shared_from_this()); }

  void Stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    shutdown(fd_, SHUT_RDWR);  // the loop sees it
    for (const auto& link : Links()) link->Close(Unavailable("the shard stops"));
    if (WaitEnded(std::chrono::milliseconds(1000))) return;
    BreakAll();  // peers that do not read
    CHECK_MSG(WaitEnded(std::chrono::seconds(30)), "a stream did not end");
  }

  void BreakAll() {
    for (const auto& link : Links()) link->Break(Unavailable("the shard broke the stream"));
  }

 private:
  void OnReady(uint32_t events) override {
    if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
      loop_->Unwatch(fd_);
      std::lock_guard lock(mutex_);
      listening_ = false;
      changed_.notify_all();
      return;
    }
    const int fd = accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0)
      Serve(fd);
    else if (errno == EMFILE || errno == ENFILE)
      TurnAway();
  }

  // Out of descriptors: without an answer the connection would wake us for ever.
  void TurnAway() {
    if (spare_fd_ >= 0) close(spare_fd_);
    if (const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC); fd >= 0) close(fd);
    spare_fd_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  }

  void Serve(int fd) {
    const auto link = std::make_shared<LocalLink>(fd, LocalLink::AtClose::kFinishWrites, loop_, pool_);
    if (!local_net::PeerIsAllowed(fd)) return;  // closes it
    local_net::SetBuffers(fd);
    {
      std::lock_guard lock(mutex_);
      if (stopping_ || links_.size() >= kLocalStreamsMax) return;
      links_.insert(link);
    }
    const auto session = std::make_shared<ServerSession>(server_->NextConn(), link, server_);
    LocalLink* const raw = link.get();
    link->Start({[session](WireFrame frame) { return session->OnFrame(std::move(frame)); },
                 [this, session, raw](const absl::Status&) {
                   session->OnLinkDown();
                   Remove(raw);
                 }});
  }

  void Remove(LocalLink* link) {
    std::lock_guard lock(mutex_);
    links_.erase(link->shared_from_this());
    if (links_.empty()) changed_.notify_all();
  }

  std::vector<std::shared_ptr<LocalLink>> Links() {
    std::lock_guard lock(mutex_);
    return {links_.begin(), links_.end()};
  }

  bool WaitEnded(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, time, [this] { return links_.empty() && !listening_; });
  }

  const int fd_;
  IoLoop* const loop_;
  FrameServer* const server_;
  BufferPool* const pool_;
  int spare_fd_;  // the loop's thread only

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::set<std::shared_ptr<LocalLink>> links_;
  bool listening_ = true, stopping_ = false;
};

struct LocalServer::Impl {
  std::shared_ptr<Listener> listener;
  IoLoop loop;  // its thread ends first
};

LocalServer::LocalServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LocalServer::~LocalServer() { impl_->listener->Stop(); }
void LocalServer::BreakStreams() { impl_->listener->BreakAll(); }

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const std::string& address,
                                                                FrameServer* server, BufferPool* pool) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Unavailable(std::string("local socket: ") + std::strerror(errno));
  auto impl = std::make_unique<Impl>();
  impl->listener = std::make_shared<Listener>(fd, &impl->loop, server, pool);
  const local_net::Address name = local_net::AddressOf(address);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&name.name), name.bytes) != 0 ||
      listen(fd, SOMAXCONN) != 0) {
    return Unavailable("cannot listen on the local socket of " + address + ": " + std::strerror(errno));
  }
  impl->listener->Start();
  return std::unique_ptr<LocalServer>(new LocalServer(std::move(impl)));
}

}  // namespace consilium
