// Runs events of a state machine one at a time, in order of posting, without a thread of its own: whoever
// posts to an idle strand runs it until its queue is empty. That saves two thread wake-ups (about 20 us each)
// per message against a strand with its own thread. Handlers must therefore be short: they never compute and
// never block.
#pragma once
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace consilium {

template <class Event>
class Strand {
 public:
  class Handler {
   public:
    virtual ~Handler() = default;
    virtual void HandleEvent(Event& event) = 0;
    virtual void AfterBatch() {}  // the events posted until now are handled
  };
  // `queue_max`: waiting events; more is an own bug of whoever should have bounded them (credits), or a
  // hostile peer.
  Strand(Handler* handler, size_t queue_max) : handler_(handler), queue_max_(queue_max) {}
  Strand(const Strand&) = delete;
  Strand& operator=(const Strand&) = delete;
  ~Strand() { CHECK_MSG(!running_, "a strand is destroyed while it runs"); }

  // Thread-safe; may be called from within a handler (the event then waits for its turn). False: the queue is
  // full and the event is lost. No allocation in steady state.
  bool Post(Event event) {
    std::unique_lock lock(mutex_);
    if (queue_.size() >= queue_max_) return false;
    queue_.push_back(std::move(event));
    if (running_) return true;
    running_ = true;
    while (!queue_.empty()) {
      std::swap(queue_, batch_);
      lock.unlock();
      for (Event& e : batch_) handler_->HandleEvent(e);
      batch_.clear();
      handler_->AfterBatch();
      lock.lock();
    }
    running_ = false;
    return true;
  }

 private:
  Handler* const handler_;
  const size_t queue_max_;
  std::mutex mutex_;
  bool running_ = false;
  std::vector<Event> queue_, batch_;  // swapped; capacity is kept. batch_ belongs to the runner
};

}  // namespace consilium
