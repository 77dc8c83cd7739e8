// Which of n numbered things are idle, least recently used first. Every operation takes constant time.
#pragma once
#include <cstdint>
#include <vector>

namespace consilium {

class IdleList {
 public:
  static constexpr uint32_t kNil = 0xFFFFFFFFu;
  explicit IdleList(uint32_t things) : links_(things) {}

  // `i`, which is not in the list, was used last.
  void Push(uint32_t i) {
    links_[i] = {last_, kNil};
    (last_ == kNil ? first_ : links_[last_].next) = i;
    last_ = i;
    ++size_;
  }
  // `i`, which is in the list.
  void Remove(uint32_t i) {
    const Link link = links_[i];
    (link.prev == kNil ? first_ : links_[link.prev].next) = link.next;
    (link.next == kNil ? last_ : links_[link.next].prev) = link.prev;
    --size_;
  }
  uint32_t first() const { return first_; }  // kNil: none
  uint32_t next(uint32_t i) const { return links_[i].next; }
  uint32_t size() const { return size_; }

 private:
  struct Link {
    uint32_t prev = kNil, next = kNil;
  };
  std::vector<Link> links_;
  uint32_t first_ = kNil, last_ = kNil, size_ = 0;
};

}  // namespace consilium
