#include "common/tensor/buffer_pool.h"

#include <bit>
#include <new>

#include "common/base/status.h"

namespace consilium {
namespace {
constexpr std::align_val_t kAlign{64};
constexpr size_t kSmallest = 256;
}  // namespace

// The header takes one aligned line in front of the bytes.
struct alignas(64) BufferRef::Block {
  std::atomic<uint32_t> references{1};
  uint32_t size_class = 0;
  size_t size = 0;
  BufferPool* pool = nullptr;

  size_t capacity() const { return kSmallest << size_class; }
  std::byte* bytes() { return reinterpret_cast<std::byte*>(this) + sizeof(Block); }
};

BufferRef::BufferRef(const BufferRef& other) : block_(other.block_) {
  if (block_ != nullptr) block_->references.fetch_add(1, std::memory_order_relaxed);
}

BufferRef::~BufferRef() {
  if (block_ != nullptr && block_->references.fetch_sub(1, std::memory_order_acq_rel) == 1)
    block_->pool->Release(block_);
}

std::byte* BufferRef::data() const { return block_ == nullptr ? nullptr : block_->bytes(); }
size_t BufferRef::size() const { return block_ == nullptr ? 0 : block_->size; }
void BufferRef::Truncate(size_t size) {
  CHECK(block_ != nullptr && size <= block_->size);
  block_->size = size;
}

BufferPool::BufferPool(size_t retained_bytes_max) : retained_bytes_max_(retained_bytes_max) {}

BufferPool::~BufferPool() {
  CHECK_MSG(live_buffers() == 0, "a buffer outlives its pool");
  for (auto& blocks : idle_) {
    for (BufferRef::Block* block : blocks) {
      block->~Block();
      ::operator delete(block, kAlign);
    }
  }
}

BufferRef BufferPool::Allocate(size_t size) {
  const size_t rounded = std::bit_ceil(size < kSmallest ? kSmallest : size);
  const auto size_class = static_cast<uint32_t>(std::countr_zero(rounded) - std::countr_zero(kSmallest));
  CHECK_MSG(size_class < kClasses, "buffer too large");
  BufferRef::Block* block = nullptr;
  {
    std::lock_guard lock(mutex_);
    auto& blocks = idle_[size_class];
    if (!blocks.empty()) {
      block = blocks.back();
      blocks.pop_back();
      retained_bytes_ -= block->capacity();
    }
  }
  if (block == nullptr) {
    block = new (::operator new(sizeof(BufferRef::Block) + rounded, kAlign)) BufferRef::Block;
    block->size_class = size_class;
    block->pool = this;
    system_allocations_.fetch_add(1, std::memory_order_relaxed);
  }
  block->references.store(1, std::memory_order_relaxed);
  block->size = size;
  live_bytes_.fetch_add(block->capacity(), std::memory_order_relaxed);
  live_buffers_.fetch_add(1, std::memory_order_relaxed);
  return BufferRef(block);
}

void BufferPool::Release(BufferRef::Block* block) {
  live_bytes_.fetch_sub(block->capacity(), std::memory_order_relaxed);
  live_buffers_.fetch_sub(1, std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    if (retained_bytes_ + block->capacity() <= retained_bytes_max_) {
      retained_bytes_ += block->capacity();
      idle_[block->size_class].push_back(block);
      return;
    }
  }
  block->~Block();
  ::operator delete(block, kAlign);
}

}  // namespace consilium
