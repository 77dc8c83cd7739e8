// Reference-counted byte buffers from a pool: what frames, activations and results lie in. In steady state
// nothing is allocated: a released buffer goes back to its size class.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace consilium {

class BufferPool;

// A shared handle to one buffer. Copying shares, destroying the last handle returns the bytes to the pool.
// Bytes are 64-byte aligned. Handles may be passed between threads; the bytes are written by one owner before
// sharing.
class BufferRef {
 public:
  BufferRef() = default;
  BufferRef(const BufferRef& other);
  BufferRef(BufferRef&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  BufferRef& operator=(BufferRef other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~BufferRef();

  std::byte* data() const;
  size_t size() const;
  std::span<std::byte> bytes() const { return {data(), size()}; }
  explicit operator bool() const { return block_ != nullptr; }
  // Shrinks the visible size; the capacity stays. size <= size().
  void Truncate(size_t size);

 private:
  friend class BufferPool;
  struct Block;
  explicit BufferRef(Block* block) : block_(block) {}
  Block* block_ = nullptr;
};

// Thread-safe. Must outlive its buffers. Size classes are powers of two from 256 B.
class BufferPool {
 public:
  // `retained_bytes_max`: how many idle bytes are kept for reuse; what is released beyond goes back to the
  // system.
  explicit BufferPool(size_t retained_bytes_max = size_t{256} << 20);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // Contents are undefined. size 0 gives a valid, empty buffer.
  BufferRef Allocate(size_t size);

  size_t live_bytes() const { return live_bytes_.load(std::memory_order_relaxed); }
  size_t live_buffers() const { return live_buffers_.load(std::memory_order_relaxed); }
  uint64_t system_allocations() const { return system_allocations_.load(std::memory_order_relaxed); }

 private:
  friend class BufferRef;
  void Release(BufferRef::Block* block);

  static constexpr size_t kClasses = 40;
  const size_t retained_bytes_max_;
  std::mutex mutex_;
  std::vector<BufferRef::Block*> idle_[kClasses];
  size_t retained_bytes_ = 0;
  std::atomic<size_t> live_bytes_{0};
  std::atomic<size_t> live_buffers_{0};
  std::atomic<uint64_t> system_allocations_{0};
};

}  // namespace consilium
