// Runs callbacks at given times on a thread of its own.
#pragma once
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "common/base/clock.h"

namespace consilium::gateway {

class DeadlineTimer {
 public:
  using Id = std::pair<MonoTime, uint64_t>;
  DeadlineTimer() : thread_([this] { Run(); }) {}
  ~DeadlineTimer() { Stop(); }

  Id At(MonoTime when, std::function<void()> f) {
    std::lock_guard lock(mu_);
    const Id id{when, ++last_};
    if (stopped_) return id;
    queue_.emplace(id, std::move(f));
    if (queue_.begin()->first == id) changed_.notify_one();
    return id;
  }
  // It may be running already.
  void Cancel(const Id& id) {
    std::function<void()> dropped;  // destroyed outside the lock
    std::lock_guard lock(mu_);
    const auto it = queue_.find(id);
    if (it == queue_.end()) return;
    dropped.swap(it->second);
    queue_.erase(it);
  }
  // Waits for a callback under way; none runs afterwards.
  void Stop() {
    {
      std::lock_guard lock(mu_);
      stopped_ = true;
    }
    changed_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run() {
    std::unique_lock lock(mu_);
    while (!stopped_) {
      if (queue_.empty()) {
        changed_.wait(lock);
        continue;
      }
      const MonoTime due = queue_.begin()->first.first, now = NowUs();
      if (due > now) {
        changed_.wait_for(lock, std::chrono::microseconds(due - now));
        continue;
      }
      std::function<void()> f = std::move(queue_.begin()->second);
      queue_.erase(queue_.begin());
      lock.unlock();
      f();
      f = nullptr;
      lock.lock();
    }
  }

  std::mutex mu_;
  std::condition_variable changed_;
  std::map<Id, std::function<void()>> queue_;
  uint64_t last_ = 0;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace consilium::gateway
