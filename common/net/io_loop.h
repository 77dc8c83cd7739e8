// One thread that waits on sockets (epoll) and on times, and calls who waits for them. It moves frames and
// never computes (I4): what it calls must not block.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/clock.h"

namespace consilium {

class IoLoop {
 public:
  class Watcher {
   public:
    virtual ~Watcher() = default;
    virtual void OnReady(uint32_t events) = 0;  // on the loop's thread; EPOLLIN, ... of epoll(7)
  };
  using TimerId = std::pair<MonoTime, uint64_t>;

  IoLoop();
  // Nothing may be watched any more; timers that wait are dropped.
  ~IoLoop();
  IoLoop(const IoLoop&) = delete;
  IoLoop& operator=(const IoLoop&) = delete;

  // Level-triggered. Keeps `watcher` until Unwatch. To end a watch from another thread, shut the socket down:
  // its watcher hears of it.
  void Watch(int fd, uint32_t events, std::shared_ptr<Watcher> watcher);
  void Change(int fd, uint32_t events, Watcher* watcher);  // of a watched fd; thread-safe
  void Unwatch(int fd);  // only by its watcher, within OnReady; then the fd may be closed

  // Calls `f` on the loop's thread, once. Thread-safe.
  TimerId RunAfter(int64_t delay_us, std::function<void()> f);
  // False: it runs, has run or was cancelled.
  bool Cancel(const TimerId& id);

 private:
  void Run();
  void RunTimers();
  void Wake();

  const int epoll_, wake_;
  std::mutex mutex_;  // guards all below but the atomics
  std::map<int, std::shared_ptr<Watcher>> watchers_;
  std::vector<std::shared_ptr<Watcher>> gone_;  // dies after the events that were read with it
  std::map<TimerId, std::function<void()>> timers_;
  uint64_t last_timer_ = 0;
  std::atomic<MonoTime> next_timer_{kNever};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace consilium
