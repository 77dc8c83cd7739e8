// Steady state of the dispatch path allocates nothing: Build -> Send -> session -> strand -> core -> hash
// backend -> result -> session -> sink, over the in-process link and over the local socket. A program of its
// own, since it counts every operator new.
#include <gtest/gtest.h>

#include <atomic>

#include "common/net/inproc_channel.h"
#include "common/net/local_fixture.h"
#include "common/testing/allocation_count.h"
#include "services/expert/shard_fixture.h"

namespace consilium {
namespace {

// Counts answers; the test waits on the number.
struct CountingSink final : ExpertChannel::Sink {
  std::atomic<uint64_t> answered{0};
  std::atomic<uint64_t> mixed{0};
  std::atomic<bool> up{false};
  void OnUp(uint32_t, uint64_t, Credit) override {
    up = true;
    up.notify_all();
  }
  void OnResult(CallResult result) override {
    uint64_t value = 0;
    std::memcpy(&value, result.payload, 8);
    mixed += value;
    answered += 1;
    answered.notify_all();
  }
  void OnReject(CallReject) override {}
  void OnCredit(Credit) override {}
  void OnHeartbeat(frame::Timing) override {}
  void OnDrain() override {}
  void OnDown(absl::Status) override {}
};

struct Inproc {
  Inproc(FrameServer* shard, BufferPool* pool, ExpertChannel::Sink* sink)
      : listener(shard), channel(CoreFixture::Hello(), Lane::kDecode, &listener, pool, sink) {}
  ExpertChannel* get() { return &channel; }
  InprocListener listener;
  InprocChannel channel;
};

struct Local {
  Local(FrameServer* shard, BufferPool* pool, ExpertChannel::Sink* sink)
      : server(ListenLocal(address, shard, pool)),
        channel(ConnectLocal(address, &loop, pool, sink, Lane::kDecode, CoreFixture::Hello())) {}
  ExpertChannel* get() { return channel.get(); }
  const std::string address = FreshAddress();
  std::unique_ptr<LocalServer> server;
  IoLoop loop;
  std::unique_ptr<ExpertChannel> channel;
};

template <class Transport>
struct Dispatch {
  BufferPool pool;
  Metrics metrics;
  HashShard hash{&pool, CoreFixture::Options(), nullptr, &metrics};
  CountingSink sink;
  Transport transport{hash.shard.get(), &pool, &sink};
  uint64_t last_call = 0;
  uint64_t source[4] = {1, 2, 3, 4};

  // Four rows, two experts each; eight calls in flight, so that jobs join frames.
  void Round() {
    static const uint32_t rows[4] = {0, 1, 2, 3};
    static const frame::Segment segment{0, 0, 4, 0, 0, 0, 1};
    static const frame::Slot slots[8] = {{0, 0, 0, 0, 0}, {0, 1, 0, 0, 0}, {3, 2, 0, 0, 0}, {3, 3, 0, 0, 0},
                                         {5, 0, 1, 0, 0}, {5, 2, 1, 0, 0}, {6, 1, 1, 0, 0}, {6, 3, 1, 0, 0}};
    CallBody::Plan plan;
    plan.layer = LayerId{1};
    plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
    plan.hidden = 1;
    plan.segments = {&segment, 1};
    plan.slots = slots;
    plan.source_rows = rows;
    plan.source = reinterpret_cast<const std::byte*>(source);
    for (int i = 0; i < 8; ++i) {
      auto body = CallBody::Build(plan, &pool);
      CHECK(transport.get()
                ->Send(CallId{++last_call}, std::move(body), CallOptions{Epoch{}, 10'000'000, 0})
                .ok());
    }
    for (uint64_t n = sink.answered; n < last_call; n = sink.answered) sink.answered.wait(n);
  }
};

TEST(DispatchAllocation, TheCounterSeesAnAllocation) {
  const uint64_t before = allocations;
  delete new int(3);
  EXPECT_GT(allocations, before);
}

template <class Transport>
class SteadyDispatch : public ::testing::Test {};
using Transports = ::testing::Types<Inproc, Local>;
TYPED_TEST_SUITE(SteadyDispatch, Transports);

TYPED_TEST(SteadyDispatch, AllocatesNothing) {
  Dispatch<TypeParam> d;
  d.sink.up.wait(false);
  // How many frames are in flight varies with the scheduler, and pools keep their high-water mark: so rounds
  // that allocate become rare and end. A path that allocated per message would do it in every round.
  for (int i = 0; i < 500; ++i) d.Round();
  uint64_t clean = 0;
  for (int i = 0; i < 500; ++i) {
    const uint64_t before = allocations;
    d.Round();
    if (allocations == before) ++clean;
  }
  EXPECT_GE(clean, 490u) << "rounds of 8 calls without any allocation, of 500";
}

}  // namespace
}  // namespace consilium
