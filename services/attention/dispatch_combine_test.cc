#include "services/attention/dispatch_combine.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>

#include "common/base/limits.h"

namespace consilium {
namespace {

struct Routing {
  uint32_t rows, top_k, row_bytes;
  std::vector<uint16_t> experts;
  std::vector<uint32_t> tags;
  std::vector<uint8_t> priority;
  std::vector<std::byte> data;
  std::vector<uint32_t> slots;
  BufferPool pool;

  Routing(uint32_t r, uint32_t k, uint32_t bytes) : rows(r), top_k(k), row_bytes(bytes) {
    for (uint32_t i = 0; i < r; ++i) {
      tags.push_back(i / 3);
      for (uint32_t s = 0; s < k; ++s) {
        experts.push_back(static_cast<uint16_t>((i * 5 + s * 3) % 16));
        slots.push_back(i * k + s);
      }
    }
    priority.assign(r, 0);
    data.resize(size_t{r} * bytes);
    for (uint32_t i = 0; i < r; ++i) std::memcpy(&data[size_t{i} * bytes], &i, 4);
  }
  DispatchSource Source() const {
    DispatchSource s;
    s.top_k = top_k;
    s.hidden = row_bytes / 4;
    s.row_bytes_in = s.row_bytes_out = row_bytes;
    s.experts = experts;
    s.request_tag = tags;
    s.priority = priority;
    s.rows = data.data();
    return s;
  }
  std::vector<PlannedCall> Plan(const std::vector<ShardId>& shard_of) {
    std::vector<PlannedCall> calls;
    CallPlanner(&pool).Plan(Source(), slots, shard_of, &calls);
    return calls;
  }
};

TEST(DispatchCombine, EachRowGoesOncePerShardAndEverySlotExactlyOnce) {
  Routing r(7, 4, 64);
  std::vector<ShardId> shard_of;
  for (uint16_t e : r.experts) shard_of.push_back(ShardId(e % 3u));
  std::set<uint32_t> seen;
  const auto calls = r.Plan(shard_of);
  ASSERT_EQ(calls.size(), 3u);
  for (const PlannedCall& call : calls) {
    std::set<uint32_t> rows;
    const auto slots = call.body->slots();
    ASSERT_EQ(slots.size(), call.slots().size());
    for (size_t i = 0; i < slots.size(); ++i) {
      EXPECT_TRUE(seen.insert(call.slots()[i]).second);
      EXPECT_EQ(r.experts[call.slots()[i]], slots[i].expert);
      EXPECT_EQ(call.slots()[i] % r.top_k, slots[i].slot);
      EXPECT_EQ(shard_of[call.slots()[i]], call.shard);
      rows.insert(call.slots()[i] / r.top_k);
      if (i > 0) {
        EXPECT_LE(std::pair(slots[i - 1].expert, slots[i - 1].row), std::pair(slots[i].expert, slots[i].row));
      }
    }
    EXPECT_EQ(call.body->n_rows(), rows.size());
  }
  EXPECT_EQ(seen.size(), r.slots.size());
}

TEST(DispatchCombine, CountsDistinctRequestsOfAFrame) {
  Routing r(7, 2, 64);  // three rows a request
  const auto calls = r.Plan(std::vector<ShardId>(r.slots.size(), ShardId(1)));
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].requests, 3u);
}

TEST(DispatchCombine, CallsAreSplitSoThatCallAndResultFitAFrame) {
  Routing r(300, 8, 4096);
  const auto calls = r.Plan(std::vector<ShardId>(r.slots.size(), ShardId(1)));
  EXPECT_GT(calls.size(), 9u);
  size_t slots = 0;
  for (const PlannedCall& call : calls) {
    EXPECT_LE(call.body->frame_bytes(), kFrameBytesMax);
    EXPECT_LE(call.body->result_bytes() + frame::kHeaderBytes + sizeof(frame::Timing), kFrameBytesMax);
    slots += call.slots().size();
  }
  EXPECT_EQ(slots, r.slots.size());
}

TEST(DispatchCombine, NothingToSendGivesNoCall) {
  Routing r(0, 2, 64);
  EXPECT_TRUE(r.Plan({}).empty());
}

struct OneCall {
  Routing r{2, 2, 8};
  std::vector<PlannedCall> calls = r.Plan(std::vector<ShardId>(4, ShardId(0)));
  SlotTable table;
  std::vector<uint64_t> values;

  OneCall() { table.Reset(4, 8); }
  CallResult Result(std::vector<frame::Range> ranges, uint64_t first_value) {
    CallResult result;
    size_t n = 0;
    for (const auto& range : ranges) n += range.n_slots;
    const size_t head = ranges.size() * 8;
    result.buffer = r.pool.Allocate(head + 8 * 8);
    std::memcpy(result.buffer.data(), ranges.data(), head);
    for (size_t i = 0; i < n && i < 8; ++i) {
      const uint64_t v = first_value + i;
      std::memcpy(result.buffer.data() + head + 8 * i, &v, 8);
    }
    result.ranges = {reinterpret_cast<const frame::Range*>(result.buffer.data()), ranges.size()};
    result.payload = result.buffer.data() + head;
    result.payload_bytes = n * 8;
    return result;
  }
  absl::Status Apply(const CallResult& result, Applied* applied) {
    return ApplyResult(calls.at(0), result, 8, &table, applied);
  }
};

TEST(SlotTable, PartialResultsFillTheTableInAnyOrder) {
  OneCall c;
  Applied applied;
  ASSERT_TRUE(c.Apply(c.Result({{2, 2}}, 12), &applied).ok());
  EXPECT_FALSE(c.table.full());
  ASSERT_TRUE(c.Apply(c.Result({{0, 2}}, 10), &applied).ok());
  EXPECT_TRUE(c.table.full());
  EXPECT_EQ(applied.fresh, 4u);
  for (size_t i = 0; i < 4; ++i) {
    uint64_t v;
    std::memcpy(&v, c.table.slots()[c.calls[0].slots()[i]], 8);
    EXPECT_EQ(v, 10 + i);
  }
}

TEST(SlotTable, ADuplicateIsDroppedAndCompared) {
  OneCall c;
  Applied applied;
  const CallResult first = c.Result({{0, 4}}, 10);
  ASSERT_TRUE(c.Apply(first, &applied).ok());
  const std::byte* kept = c.table.slots()[0];
  ASSERT_TRUE(c.Apply(c.Result({{0, 4}}, 10), &applied).ok());
  EXPECT_EQ(applied.duplicates, 4u);
  EXPECT_EQ(applied.mismatches, 0u);
  ASSERT_TRUE(c.Apply(c.Result({{0, 4}}, 11), &applied).ok());
  EXPECT_EQ(applied.mismatches, 4u);
  EXPECT_EQ(c.table.slots()[0], kept);
}

TEST(SlotTable, AResultThatDoesNotFitItsCallChangesNothing) {
  OneCall c;
  Applied applied;
  EXPECT_FALSE(c.Apply(c.Result({{3, 2}}, 0), &applied).ok());
  EXPECT_FALSE(c.Apply(c.Result({{0xFFFFFFFF, 2}}, 0), &applied).ok());
  CallResult tail = c.Result({{0, 4}}, 0);
  tail.payload_bytes -= 8;
  EXPECT_FALSE(c.Apply(tail, &applied).ok());
  EXPECT_EQ(applied.fresh, 0u);
}

TEST(SlotTable, LetsItsBuffersGo) {
  OneCall c;
  const size_t before = c.r.pool.live_buffers();
  Applied applied;
  ASSERT_TRUE(c.Apply(c.Result({{0, 4}}, 0), &applied).ok());
  EXPECT_EQ(c.r.pool.live_buffers(), before + 1);
  c.table.Clear();
  EXPECT_EQ(c.r.pool.live_buffers(), before);
}

}  // namespace
}  // namespace consilium
