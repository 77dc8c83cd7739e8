#include "common/net/local_channel.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "common/base/status.h"

namespace consilium {

LocalOpener::LocalOpener(std::string address, IoLoop* loop, BufferPool* pool)
    : address_(std::move(address)), loop_(loop), pool_(pool) {}

absl::StatusOr<std::shared_ptr<FrameLink>> LocalOpener::Open(ChannelSession* session,
                                                             std::function<void(absl::Status)> ended) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Unavailable(std::string("local socket: ") + std::strerror(errno));
  const auto link = std::make_shared<LocalLink>(fd, LocalLink::AtClose::kDropWrites, loop_, pool_);
  const local_net::Address to = local_net::AddressOf(address_);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&to.name), to.bytes) != 0) {
    return Unavailable("local socket of " + address_ + ": " + std::strerror(errno));
  }
  if (!local_net::PeerIsAllowed(fd)) {
    return Unavailable("local socket of " + address_ + " is held by another user");
  }
  local_net::SetBuffers(fd);
  session->OnLinkUp(link);
  link->Start({[session](WireFrame frame) { return session->OnFrame(std::move(frame)); }, std::move(ended)});
  return std::shared_ptr<FrameLink>(link);
}

}  // namespace consilium
