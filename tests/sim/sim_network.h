// Streams between processes. In order within a stream; different pairs overtake each other; frames are lost
// only with their stream.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/net/session.h"
#include "tests/sim/sim_clock.h"

namespace consilium::sim {

// One message stream between two processes. Ends are 0 and 1; `deliver` and `down` of a dead process are
// null.
struct Stream {
  uint64_t id = 0;
  std::string pair;  // who with whom, for delays
  bool open[2] = {true, true};
  MonoTime last[2] = {0, 0};  // delivery to an end is in order
  std::function<void(absl::Status)> down[2];
};
using StreamRef = std::shared_ptr<Stream>;

class Network {
 public:
  explicit Network(SimClock* clock) : clock_(clock) {}
  StreamRef Open(std::string pair) {
    auto s = std::make_shared<Stream>();
    s->id = next_++;
    s->pair = std::move(pair);
    return s;
  }
  // Runs `f` at end `to` after the stream's delay, in order, if the stream still stands then.
  void Send(const StreamRef& s, int to, const char* what, uint64_t id, std::function<void()> f) {
    if (!s->open[0] || !s->open[1]) return;
    s->last[to] = std::max(s->last[to], clock_->now() + Delay(s->pair));
    clock_->At(s->last[to], what, id, [s, to, f = std::move(f)] {
      if (s->open[to]) f();
    });
  }
  // End `from` closes: the other hears of it after what was sent before.
  void Close(const StreamRef& s, int from, const absl::Status& why) {
    if (!s->open[from]) return;
    const int to = 1 - from;
    s->last[to] = std::max(s->last[to], clock_->now() + Delay(s->pair));
    clock_->At(s->last[to], "closed", s->id, [s, to, why] { Down(s, to, why); });
    s->open[from] = false;
  }
  // The connection is gone: what is on its way is lost, both ends hear of it, each in its time.
  void Break(const StreamRef& s) {
    for (int end : {0, 1}) {
      if (!s->open[end]) continue;
      auto down = s->down[end];
      s->open[end] = false;
      s->down[end] = nullptr;
      clock_->In(Delay(s->pair), "broken", s->id, [down] {
        if (down) down(absl::UnavailableError("connection lost"));
      });
    }
  }
  // Process at `end` died: it hears nothing more, the other end does.
  void Die(const StreamRef& s, int end) {
    s->down[end] = nullptr;
    Break(s);
  }
  void SetSlow(const std::string& pair, uint32_t factor) { slow_[pair] = factor; }
  void ClearSlow() { slow_.clear(); }

 private:
  static void Down(const StreamRef& s, int end, const absl::Status& why) {
    if (!s->open[end]) return;
    s->open[end] = false;
    auto down = std::move(s->down[end]);
    s->down[end] = nullptr;
    if (down) down(why);
  }
  MonoTime Delay(const std::string& pair) {
    MonoTime us = 30 + static_cast<MonoTime>(clock_->Pick(200));
    if (clock_->Pick(200) == 0) us += static_cast<MonoTime>(clock_->Pick(20000));
    if (auto it = slow_.find(pair); it != slow_.end()) us *= it->second;
    return us;
  }
  SimClock* const clock_;
  uint64_t next_ = 1;
  std::map<std::string, uint32_t> slow_;
};

// A stream of frames, as the net sessions want it.
class SimLink final : public FrameLink {
 public:
  SimLink(Network* net, StreamRef stream, int end, std::function<void(WireFrame)> peer)
      : net_(net), stream_(std::move(stream)), end_(end), peer_(std::move(peer)) {}
  void Write(WireFrame frame) override {
    const uint64_t sum = Xxh3(frame.head()) ^ Xxh3(frame.rest());
    net_->Send(stream_, 1 - end_, "frame", sum, [peer = peer_, frame = std::move(frame)] { peer(frame); });
  }
  void Close(const absl::Status& why) override { net_->Close(stream_, end_, why); }

 private:
  Network* const net_;
  const StreamRef stream_;
  const int end_;
  const std::function<void(WireFrame)> peer_;
};

}  // namespace consilium::sim
