#include "common/net/io_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/base/status.h"

namespace consilium {
namespace {
constexpr int kEventsMax = 64;
}  // namespace

IoLoop::IoLoop() : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK_MSG(epoll_ >= 0 && wake_ >= 0, "no file descriptor is left for an I/O thread");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;  // the loop itself
  CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) == 0);
  thread_ = std::thread([this] { Run(); });
}

IoLoop::~IoLoop() {
  stop_ = true;
  Wake();
  thread_.join();
  CHECK_MSG(watchers_.empty(), std::to_string(watchers_.size()) + " sockets are still watched");
  close(wake_);
  close(epoll_);
}

void IoLoop::Wake() {
  const uint64_t one = 1;
  CHECK(write(wake_, &one, sizeof one) == sizeof one || errno == EAGAIN);
}

void IoLoop::Watch(int fd, uint32_t events, std::shared_ptr<Watcher> watcher) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = watcher.get();
  {
    std::lock_guard lock(mutex_);
    watchers_[fd] = std::move(watcher);
  }
  CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0);
}

void IoLoop::Change(int fd, uint32_t events, Watcher* watcher) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = watcher;
  CHECK(epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event) == 0);
}

void IoLoop::Unwatch(int fd) {
  CHECK(epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr) == 0);
  std::lock_guard lock(mutex_);
  const auto it = watchers_.find(fd);
  gone_.push_back(std::move(it->second));
  watchers_.erase(it);
}

IoLoop::TimerId IoLoop::RunAfter(int64_t delay_us, std::function<void()> f) {
  std::lock_guard lock(mutex_);
  const TimerId id{NowUs() + delay_us, ++last_timer_};
  timers_.emplace(id, std::move(f));
  if (timers_.begin()->first == id) {
    next_timer_ = id.first;
    Wake();
  }
  return id;
}

bool IoLoop::Cancel(const TimerId& id) {
  std::lock_guard lock(mutex_);
  return timers_.erase(id) == 1;
}

void IoLoop::RunTimers() {
  std::unique_lock lock(mutex_);
  while (!timers_.empty() && timers_.begin()->first.first <= NowUs()) {
    const std::function<void()> f = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    lock.unlock();
    f();
    lock.lock();
  }
  next_timer_ = timers_.empty() ? kNever : timers_.begin()->first.first;
}

void IoLoop::Run() {
  epoll_event events[kEventsMax];
  while (!stop_) {
    int timeout_ms = -1;
    if (const MonoTime next = next_timer_; next != kNever) {
      const MonoTime left_us = next - NowUs();
      if (left_us <= 0) {
        RunTimers();
        continue;
      }
      timeout_ms = static_cast<int>(std::min<MonoTime>(left_us / 1000 + 1, 60'000));
    }
    const int n = epoll_wait(epoll_, events, kEventsMax, timeout_ms);
    CHECK(n >= 0 || errno == EINTR);
    for (int i = 0; i < n; ++i) {
      auto* watcher = static_cast<Watcher*>(events[i].data.ptr);
      if (watcher != nullptr) {
        watcher->OnReady(events[i].events);
      } else {
        uint64_t count;
        CHECK(read(wake_, &count, sizeof count) == sizeof count || errno == EAGAIN);
      }
    }
    std::vector<std::shared_ptr<Watcher>> dead;
    {
      std::lock_guard lock(mutex_);
      dead.swap(gone_);
    }
  }
}

}  // namespace consilium
