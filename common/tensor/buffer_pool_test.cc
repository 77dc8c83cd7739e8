#include "common/tensor/buffer_pool.h"

#include <gtest/gtest.h>

namespace consilium {
namespace {

TEST(BufferPool, AReleasedBufferIsUsedAgainWithoutAllocating) {
  BufferPool pool;
  const std::byte* first = pool.Allocate(1000).data();
  BufferRef again = pool.Allocate(900);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(again.size(), 900u);
  EXPECT_EQ(pool.system_allocations(), 1u);
}

TEST(BufferPool, BytesLiveUntilTheLastHandleGoes) {
  BufferPool pool;
  BufferRef a = pool.Allocate(64);
  {
    BufferRef b = a;
    a = BufferRef();
    EXPECT_EQ(pool.live_buffers(), 1u);
    EXPECT_EQ(b.size(), 64u);
  }
  EXPECT_EQ(pool.live_buffers(), 0u);
}

TEST(BufferPool, BuffersAreAlignedAndEmptyOnesAreValid) {
  BufferPool pool;
  for (size_t size : {size_t{0}, size_t{1}, size_t{255}, size_t{257}, size_t{1} << 20}) {
    BufferRef buffer = pool.Allocate(size);
    EXPECT_TRUE(buffer);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  }
}

TEST(BufferPool, IdleBytesStayBelowTheBound) {
  BufferPool pool(1024);
  {
    BufferRef a = pool.Allocate(1024), b = pool.Allocate(1024);
  }
  BufferRef a = pool.Allocate(1024), b = pool.Allocate(1024);
  EXPECT_EQ(pool.system_allocations(), 3u);
}

}  // namespace
}  // namespace consilium
