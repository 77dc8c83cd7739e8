// Test helpers for the local transport: channels over it alone, and raw sockets that do what no link would.
#pragma once
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/net/channel_fixture.h"
#include "common/net/local_channel.h"
#include "common/net/local_server.h"

namespace consilium {

// A name of its own for each test and process.
inline std::string FreshAddress() {
  static std::atomic<int> next{1};
  return "test-" + std::to_string(getpid()) + ":" + std::to_string(next++);
}

inline std::unique_ptr<ExpertChannel> ConnectLocal(const std::string& address, IoLoop* loop, BufferPool* pool,
                                                   ExpertChannel::Sink* sink, Lane lane = Lane::kDecode,
                                                   RouterHello hello = MakeHello()) {
  std::vector<std::unique_ptr<LinkOpener>> openers;
  openers.push_back(std::make_unique<LocalOpener>(address, loop, pool));
  return std::make_unique<DialedChannel>(std::move(openers), lane, std::move(hello), loop, pool, sink);
}

inline std::unique_ptr<LocalServer> ListenLocal(const std::string& address, FrameServer* server,
                                                BufferPool* pool) {
  auto started = LocalServer::Start(address, server, pool);
  CHECK_MSG(started.ok(), ToString(started.status()));
  return std::move(*started);
}

inline size_t OpenFiles() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

// A blocking socket of the local transport. What should come and does not within 20 s counts as missing.
class RawSocket {
 public:
  RawSocket() : RawSocket(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  explicit RawSocket(int fd) : fd_(fd) {
    const timeval limit{20, 0};
    CHECK(fd_ >= 0 && setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
  }
  RawSocket(RawSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~RawSocket() { Close(); }
  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

  bool Connect(const std::string& address) {
    const local_net::Address to = local_net::AddressOf(address);
    return connect(fd_, reinterpret_cast<const sockaddr*>(&to.name), to.bytes) == 0;
  }
  void Listen(const std::string& address) {
    const local_net::Address at = local_net::AddressOf(address);
    CHECK(bind(fd_, reinterpret_cast<const sockaddr*>(&at.name), at.bytes) == 0 && listen(fd_, 8) == 0);
  }
  RawSocket Accept() { return RawSocket(accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC)); }

  // False: the peer is gone.
  bool Send(const void* bytes, size_t size) {
    const char* at = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t n = send(fd_, at, size, MSG_NOSIGNAL);
      if (n <= 0) return false;
      at += n;
      size -= static_cast<size_t>(n);
    }
    return true;
  }
  bool SendLength(uint32_t length) { return Send(&length, sizeof length); }
  bool SendFrame(const BufferRef& frame) {
    return SendLength(static_cast<uint32_t>(frame.size())) && Send(frame.data(), frame.size());
  }
  // The next frame; empty: the peer ended the stream.
  std::vector<std::byte> ReadFrame() {
    uint32_t length = 0;
    if (!Read(&length, sizeof length)) return {};
    std::vector<std::byte> frame(length);
    if (!Read(frame.data(), length)) return {};
    return frame;
  }
  // Whether the stream ends without another byte.
  bool Ended() {
    char byte;
    const ssize_t n = recv(fd_, &byte, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
  }

 private:
  bool Read(void* to, size_t size) { return recv(fd_, to, size, MSG_WAITALL) == static_cast<ssize_t>(size); }
  int fd_;
};

}  // namespace consilium
