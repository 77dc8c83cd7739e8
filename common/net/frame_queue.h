// Frames that wait to be written to a link.
#pragma once
#include <cstddef>
#include <utility>
#include <vector>

#include "common/net/frame.h"

namespace consilium {

// FIFO; capacity is kept. The owner bounds it (kLinkQueueFramesMax).
class FrameQueue {
 public:
  bool empty() const { return head_ == frames_.size(); }
  size_t size() const { return frames_.size() - head_; }
  const WireFrame& front() const { return frames_[head_]; }
  void Push(WireFrame frame) { frames_.push_back(std::move(frame)); }
  WireFrame Pop() {
    WireFrame frame = std::move(frames_[head_++]);
    if (empty()) {
      frames_.clear();
      head_ = 0;
    } else if (head_ >= 1024) {
      frames_.erase(frames_.begin(), frames_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
    return frame;
  }
  void Clear() {
    frames_.clear();
    head_ = 0;
  }

 private:
  std::vector<WireFrame> frames_;
  size_t head_ = 0;
};

}  // namespace consilium
