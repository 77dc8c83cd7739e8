#include "common/net/io_loop.h"

#include <gtest/gtest.h>

#include <future>

namespace consilium {
namespace {

TEST(IoLoop, TimersRunInTheOrderOfTheirTimes) {
  IoLoop loop;
  std::vector<int> order;  // of the loop's thread, until the promise is kept
  std::promise<void> done;
  loop.RunAfter(30'000, [&] {
    order.push_back(3);
    done.set_value();
  });
  loop.RunAfter(10'000, [&] { order.push_back(1); });
  loop.RunAfter(20'000, [&] { order.push_back(2); });
  done.get_future().wait();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(IoLoop, ACancelledTimerNeverRuns) {
  IoLoop loop;
  std::atomic<bool> ran{false};
  std::promise<void> later;
  const auto id = loop.RunAfter(20'000, [&] { ran = true; });
  EXPECT_TRUE(loop.Cancel(id));
  EXPECT_FALSE(loop.Cancel(id));
  loop.RunAfter(40'000, [&] { later.set_value(); });
  later.get_future().wait();
  EXPECT_FALSE(ran);
}

TEST(IoLoop, ATimerThatIsCancelledTooLateSaysSo) {
  IoLoop loop;
  std::promise<void> ran;
  const auto id = loop.RunAfter(0, [&] { ran.set_value(); });
  ran.get_future().wait();
  EXPECT_FALSE(loop.Cancel(id));
}

TEST(IoLoop, ATimerMaySetTheNext) {
  IoLoop loop;
  std::promise<void> done;
  loop.RunAfter(0, [&] { loop.RunAfter(0, [&] { done.set_value(); }); });
  done.get_future().wait();
}

}  // namespace
}  // namespace consilium
