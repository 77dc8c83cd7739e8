// Virtual time: events in order of (time, order of scheduling), and a hash over all that happened.
#pragma once
#include <cstdint>
#include <cstdio>
#include <functional>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/hash.h"

namespace consilium::sim {

class SimClock {
 public:
  SimClock(uint64_t seed, bool print) : rng(seed), print_(print) {}

  MonoTime now() const { return now_; }
  // `what` and `id` go into the trace when the event comes.
  void At(MonoTime t, const char* what, uint64_t id, std::function<void()> f) {
    events_.push(Event{std::max(t, now_), next_++, what, id, std::move(f)});
  }
  void In(MonoTime us, const char* what, uint64_t id, std::function<void()> f) {
    At(now_ + us, what, id, std::move(f));
  }
  // False: nothing left.
  bool Step() {
    if (events_.empty()) return false;
    Event e = std::move(const_cast<Event&>(events_.top()));
    events_.pop();
    now_ = e.at;
    ++steps_;
    Note(e.what, e.id);
    e.f();
    return true;
  }
  void Note(const char* what, uint64_t id) {
    uint64_t h = Mix(static_cast<uint64_t>(now_), id);
    for (const char* c = what; *c != 0; ++c) h = Mix(h, static_cast<uint8_t>(*c));
    trace_ = Mix(trace_, h);
    if (print_)
      std::fprintf(stderr, "%10lld us  %s %llx\n", static_cast<long long>(now_), what,
                   static_cast<unsigned long long>(id));
  }
  void Say(const std::string& text) const {
    if (print_) std::fprintf(stderr, "%10lld us    %s\n", static_cast<long long>(now_), text.c_str());
  }
  uint64_t trace() const { return trace_; }
  uint64_t steps() const { return steps_; }

  // Uniform in [0, n).
  uint64_t Pick(uint64_t n) { return rng() % n; }
  bool Chance(uint32_t percent) { return Pick(100) < percent; }
  std::mt19937_64 rng;

 private:
  struct Event {
    MonoTime at;
    uint64_t order;
    const char* what;
    uint64_t id;
    std::function<void()> f;
    bool operator<(const Event& o) const { return at != o.at ? at > o.at : order > o.order; }
  };
  const bool print_;
  MonoTime now_ = 1;
  uint64_t next_ = 0, steps_ = 0, trace_ = 0;
  std::priority_queue<Event> events_;
};

// Runs events of one core one at a time: a handler that leads to a further event only queues it.
template <class Event>
class Inbox {
 public:
  explicit Inbox(std::function<void(Event&)> handle) : handle_(std::move(handle)) {}
  void Post(Event e) {
    queue_.push(std::move(e));
    if (running_) return;
    running_ = true;
    while (!queue_.empty()) {
      Event next = std::move(queue_.front());
      queue_.pop();
      handle_(next);
    }
    running_ = false;
  }

 private:
  const std::function<void(Event&)> handle_;
  std::queue<Event> queue_;
  bool running_ = false;
};

}  // namespace consilium::sim
