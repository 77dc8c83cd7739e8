#include "common/net/local_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "common/base/hash.h"
#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {
namespace local_net {

static_assert(std::endian::native == std::endian::little, "lengths and frames are little endian");

Address AddressOf(const std::string& host_port) {
  std::string name = "consilium/" + host_port;
  Address address{};
  address.name.sun_family = AF_UNIX;
  char* path = address.name.sun_path;  // begins with a zero: abstract
  if (name.size() + 1 > sizeof address.name.sun_path) {
    name = "consilium/#" + std::to_string(Xxh3(std::as_bytes(std::span(host_port))));
  }
  std::memcpy(path + 1, name.data(), name.size());
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

void SetBuffers(int fd) {
  const int bytes = static_cast<int>(2 * kFrameBytesMax);
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);  // less is slower, not wrong
}

bool PeerIsAllowed(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         (peer.uid == 0 || peer.uid == geteuid());
}

}  // namespace local_net

namespace {

constexpr size_t kLengthBytes = 4;
// Bytes taken from one socket before the others have their turn.
constexpr size_t kTurnBytes = size_t{256} << 10;

absl::Status SocketError(const char* what) {
  return Unavailable(std::string("local socket: ") + what + ": " + std::strerror(errno));
}

}  // namespace

LocalLink::LocalLink(int fd, AtClose at_close, IoLoop* loop, BufferPool* pool)
    : fd_(fd), at_close_(at_close), loop_(loop), pool_(pool) {}

LocalLink::~LocalLink() { close(fd_); }

void LocalLink::Start(User user) {
  std::lock_guard lock(mutex_);
  user_ = std::move(user);
  started_ = true;
  watched_ = EPOLLIN | (queue_.empty() ? 0u : static_cast<uint32_t>(EPOLLOUT));
  loop_->Watch(fd_, watched_, shared_from_this());
}

void LocalLink::WatchFor() {
  const uint32_t wanted = (closing_ ? 0u : static_cast<uint32_t>(EPOLLIN)) |
                          (queue_.empty() ? 0u : static_cast<uint32_t>(EPOLLOUT));
  if (!started_ || ended_ || wanted == watched_) return;
  watched_ = wanted;
  loop_->Change(fd_, wanted, this);
}

ssize_t LocalLink::SendFrom(const WireFrame& frame, size_t from) {
  const auto length = static_cast<uint32_t>(frame.size());
  const std::span<const std::byte> parts[] = {std::as_bytes(std::span(&length, 1)), frame.head(),
                                              frame.rest()};
  iovec pieces[3];
  msghdr message{};
  message.msg_iov = pieces;
  for (std::span<const std::byte> part : parts) {
    const size_t skipped = std::min(from, part.size());
    from -= skipped;
    part = part.subspan(skipped);
    // iovec has no const; sendmsg only reads.
    if (!part.empty()) pieces[message.msg_iovlen++] = {const_cast<std::byte*>(part.data()), part.size()};
  }
  while (true) {
    const ssize_t sent = sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return sent;
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return -1;
  }
}

void LocalLink::Write(WireFrame frame) {
  std::lock_guard lock(mutex_);
  if (closing_ || ended_) return;
  size_t sent = 0;
  if (queue_.empty()) {
    const ssize_t n = SendFrom(frame, 0);
    if (n < 0) return BreakLocked(SocketError("send"));
    sent = static_cast<size_t>(n);
    if (sent == kLengthBytes + frame.size()) return;
    front_sent_ = sent;
  } else if (queue_.size() >= kLinkQueueFramesMax) {
    return BreakLocked(
        ResourceExhausted("more than " + std::to_string(kLinkQueueFramesMax) + " frames wait to be written"));
  }
  queue_.Push(std::move(frame));
  WatchFor();
}

void LocalLink::SendWaiting() {
  while (!queue_.empty()) {
    const ssize_t n = SendFrom(queue_.front(), front_sent_);
    if (n < 0) return BreakLocked(SocketError("send"));
    front_sent_ += static_cast<size_t>(n);
    if (front_sent_ < kLengthBytes + queue_.front().size()) return;
    queue_.Pop();
    front_sent_ = 0;
  }
  if (closing_) shutdown(fd_, SHUT_RDWR);
  WatchFor();
}

void LocalLink::Close(const absl::Status& why) {
  std::lock_guard lock(mutex_);
  CloseLocked(why);
}

void LocalLink::Break(const absl::Status& why) {
  std::lock_guard lock(mutex_);
  BreakLocked(why);
}

void LocalLink::CloseLocked(const absl::Status& why) {
  if (at_close_ == AtClose::kDropWrites || queue_.empty()) return BreakLocked(why);
  if (closing_ || ended_) return;
  closing_ = true;
  why_ = why;
  WatchFor();
}

void LocalLink::BreakLocked(const absl::Status& why) {
  if (ended_) return;
  if (!closing_) why_ = why;
  closing_ = true;
  queue_.Clear();
  shutdown(fd_, SHUT_RDWR);  // the loop sees it and ends the link
  WatchFor();
}

void LocalLink::OnReady(uint32_t events) {
  bool end = false;
  if ((events & EPOLLOUT) != 0 || closing_) {  // else no lock: a sender may be copying a frame under it
    std::lock_guard lock(mutex_);
    if ((events & EPOLLOUT) != 0) SendWaiting();
    end = closing_ && (queue_.empty() || (events & (EPOLLHUP | EPOLLERR)) != 0);
  }
  if (end) return End(absl::OkStatus());
  if ((events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) Receive();
}

void LocalLink::Receive() {
  for (size_t taken = 0; taken < kTurnBytes;) {
    // The rest of this frame and the length of the next, or a length alone.
    iovec pieces[2];
    int n_pieces = 0;
    size_t wanted = 0;
    if (incoming_) {
      wanted = incoming_.size() - incoming_got_;
      pieces[n_pieces++] = {incoming_.data() + incoming_got_, wanted};
    }
    pieces[n_pieces++] = {length_ + length_got_, kLengthBytes - length_got_};
    wanted += kLengthBytes - length_got_;
    const ssize_t got = readv(fd_, pieces, n_pieces);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got < 0) return End(SocketError("receive"));
    if (got == 0) return End(Unavailable("the peer ended the stream"));
    if (const absl::Status status = Take(static_cast<size_t>(got)); !status.ok()) return Close(status);
    if (static_cast<size_t>(got) < wanted) return;  // there is no more; saves asking
    taken += static_cast<size_t>(got);
  }
}

absl::Status LocalLink::Take(size_t bytes) {
  if (incoming_) {
    const size_t part = std::min(bytes, incoming_.size() - incoming_got_);
    incoming_got_ += part;
    bytes -= part;
    if (incoming_got_ < incoming_.size()) return absl::OkStatus();
    RETURN_IF_ERROR(user_.on_frame(WireFrame{std::exchange(incoming_, BufferRef()), false, {}}));
  }
  length_got_ += bytes;
  return length_got_ == kLengthBytes ? BeginFrame() : absl::OkStatus();
}

absl::Status LocalLink::BeginFrame() {
  uint32_t length = 0;
  std::memcpy(&length, length_, sizeof length);
  if (length < frame::kHeaderBytes || length > kFrameBytesMax + kFrameSlackBytes) {
    return InvalidArgument(
        "local socket: length of a frame, expected " + std::to_string(frame::kHeaderBytes) + " to " +
        std::to_string(kFrameBytesMax + kFrameSlackBytes) + ", got " + std::to_string(length));
  }
  incoming_ = pool_->Allocate(length);
  incoming_got_ = 0;
  length_got_ = 0;
  return absl::OkStatus();
}

void LocalLink::End(absl::Status why) {
  {
    std::lock_guard lock(mutex_);
    if (why_.ok()) why_ = std::move(why);
    why = why_;
    ended_ = true;
    queue_.Clear();
  }
  shutdown(fd_, SHUT_RDWR);  // whoever still holds this link must not keep the peer waiting
  loop_->Unwatch(fd_);
  incoming_ = BufferRef();                         // nor the pool
  const User user = std::exchange(user_, User{});  // it may own this link
  user.on_end(why);
}

}  // namespace consilium
