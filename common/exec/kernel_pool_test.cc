#include "common/exec/kernel_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace consilium {
namespace {

class KernelPoolTest : public testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Threads, KernelPoolTest, testing::Values(1, 2, 3, 8));

TEST_P(KernelPoolTest, EveryItemRunsExactlyOnce) {
  KernelPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (size_t items : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> runs(items);
    pool.ParallelFor(items, [&](size_t item, uint32_t thread) {
      ASSERT_LT(thread, pool.threads());
      runs[item].fetch_add(1);
    });
    for (size_t i = 0; i < items; ++i) EXPECT_EQ(runs[i].load(), 1) << "item " << i << " of " << items;
  }
}

TEST_P(KernelPoolTest, ManySmallJobsInARowSeeTheirOwnContext) {
  KernelPool pool(GetParam());
  for (size_t job = 0; job < 20000; ++job) {
    const size_t items = 1 + job % 5;
    std::vector<size_t> out(items, 0);  // plain memory: Run's return must order it
    pool.ParallelFor(items, [&](size_t item, uint32_t) { out[item] = job + item; });
    for (size_t i = 0; i < items; ++i) ASSERT_EQ(out[i], job + i) << "job " << job;
  }
}

TEST(KernelPool, AnIdleThreadTakesTheItemsOfABusyOne) {
  KernelPool pool(3);
  // One item does not end before all others have: it can only be so if other threads take them.
  std::atomic<size_t> others{0};
  constexpr size_t kItems = 50;
  std::vector<uint32_t> by(kItems);
  pool.ParallelFor(kItems, [&](size_t item, uint32_t thread) {
    by[item] = thread;
    if (item == 0) {
      while (others.load() < kItems - 1) std::this_thread::yield();
    } else {
      others.fetch_add(1);
    }
  });
  for (size_t i = 1; i < kItems; ++i) EXPECT_NE(by[i], by[0]);
}

TEST(KernelPoolSize, ZeroMeansTheCoresOfThisProcess) {
  KernelPool pool(0);
  EXPECT_EQ(pool.threads(), AvailableCores());
  EXPECT_GE(AvailableCores(), 1u);
}

TEST(KernelPoolSize, PoolsStartAndStopWithoutAJob) {
  for (int i = 0; i < 50; ++i) KernelPool pool(4);
}

}  // namespace
}  // namespace consilium
