// What a socket can do to a link: frames in pieces, ends in the middle, lengths and bytes that are none, a
// peer that does not read, a peer of another user.
#include "common/net/local_link.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <chrono>
#include <thread>

#include "common/base/limits.h"
#include "common/net/local_fixture.h"

namespace consilium {
namespace {

constexpr uint32_t kLengthMax = kFrameBytesMax + kFrameSlackBytes;

// A shard's door, and a raw router.
struct Door {
  BufferPool pool;
  ScriptedShard shard{&pool};
  std::string address = FreshAddress();
  std::unique_ptr<LocalServer> server = ListenLocal(address, &shard, &pool);

  RawSocket Connect() {
    RawSocket peer;
    CHECK(peer.Connect(address));
    return peer;
  }
  // A router that has had its WELCOME.
  RawSocket Greeted() {
    RawSocket peer = Connect();
    CHECK(peer.SendFrame(EncodeHello(MakeHello(), Lane::kDecode, &pool)));
    CHECK(!peer.ReadFrame().empty());
    return peer;
  }
  BufferRef Call(uint64_t id) {
    const auto body = MakeBody(&pool, {id});
    BufferRef frame = pool.Allocate(body->frame_bytes());
    const WireFrame wire = body->Frame(CallId{id}, Epoch{}, 1'000'000, 0);
    std::memcpy(frame.data(), wire.head().data(), frame::kHeaderBytes);
    std::memcpy(frame.data() + frame::kHeaderBytes, wire.rest().data(), wire.rest().size());
    return frame;
  }
  bool Closed(int n) {
    return shard.WaitFor([&](const auto& s) { return s.closed == n; });
  }
  void ExpectServes() {
    RawSocket other = Greeted();
    ASSERT_TRUE(other.SendFrame(Call(1)));
    EXPECT_FALSE(other.ReadFrame().empty());
  }
};

TEST(LocalLink, AFrameMayComeByteByByte) {
  Door door;
  RawSocket peer = door.Connect();
  const BufferRef hello = EncodeHello(MakeHello(), Lane::kDecode, &door.pool);
  const auto length = static_cast<uint32_t>(hello.size());
  std::vector<std::byte> bytes(4 + length);
  std::memcpy(bytes.data(), &length, 4);
  std::memcpy(bytes.data() + 4, hello.data(), length);
  for (const std::byte& b : bytes) ASSERT_TRUE(peer.Send(&b, 1));
  EXPECT_FALSE(peer.ReadFrame().empty());
}

TEST(LocalLink, ManyFramesMayComeInOnePiece) {
  Door door;
  RawSocket peer = door.Greeted();
  std::string bytes;
  constexpr uint64_t kCalls = 1000;
  for (uint64_t id = 1; id <= kCalls; ++id) {
    const BufferRef call = door.Call(id);
    const auto length = static_cast<uint32_t>(call.size());
    bytes.append(reinterpret_cast<const char*>(&length), 4);
    bytes.append(reinterpret_cast<const char*>(call.data()), call.size());
  }
  std::thread send([&] { EXPECT_TRUE(peer.Send(bytes.data(), bytes.size())); });
  for (uint64_t id = 1; id <= kCalls; ++id) {
    const std::vector<std::byte> frame = peer.ReadFrame();
    ASSERT_GE(frame.size(), frame::kHeaderBytes);
    uint64_t got = 0;
    std::memcpy(&got, frame.data() + 8, sizeof got);  // call_id
    ASSERT_EQ(got, id);
  }
  send.join();
}

TEST(LocalLink, ALengthOutsideTheLimitsEndsTheStreamOnly) {
  Door door;
  int closed = 0;
  for (const uint32_t length : {uint32_t{0}, uint32_t{1}, uint32_t{frame::kHeaderBytes - 1}, kLengthMax + 1,
                                uint32_t{0x7FFFFFFF}, uint32_t{0xFFFFFFFF}}) {
    SCOPED_TRACE(length);
    RawSocket peer = door.Greeted();
    ASSERT_TRUE(peer.SendLength(length));
    EXPECT_TRUE(peer.Ended());
    EXPECT_TRUE(door.Closed(++closed));
  }
  door.ExpectServes();
}

TEST(LocalLink, TheLargestLengthIsRead) {
  Door door;
  RawSocket peer = door.Greeted();
  const std::string nonsense(kLengthMax, 'x');
  ASSERT_TRUE(peer.SendLength(kLengthMax));
  ASSERT_TRUE(peer.Send(nonsense.data(), nonsense.size()));  // all of it, then it is refused as a frame
  EXPECT_TRUE(peer.Ended());
}

TEST(LocalLink, GarbageEndsTheStreamOnly) {
  Door door;
  RawSocket before = door.Connect();  // instead of HELLO
  ASSERT_TRUE(before.SendFrame(frame::EncodePayload(frame::Kind::kWelcome, "nonsense", &door.pool)));
  EXPECT_TRUE(before.Ended());
  RawSocket after = door.Greeted();
  BufferRef call = door.Call(1);
  call.data()[frame::kHeaderBytes] ^= std::byte{1};  // a table: the sum does not fit
  ASSERT_TRUE(after.SendFrame(call));
  EXPECT_TRUE(after.Ended());
  EXPECT_TRUE(door.Closed(1));
  door.ExpectServes();
}

TEST(LocalLink, ARouterThatDiesInAFrameIsClosedAndItsBuffersComeBack) {
  Door door;
  const BufferRef call = door.Call(1);
  int closed = 0;
  for (const size_t bytes : {size_t{1}, size_t{3}, size_t{4}, size_t{5}, size_t{4} + call.size() - 1}) {
    SCOPED_TRACE(bytes);
    RawSocket peer = door.Greeted();
    const auto length = static_cast<uint32_t>(call.size());
    std::string frame(reinterpret_cast<const char*>(&length), 4);
    frame.append(reinterpret_cast<const char*>(call.data()), call.size());
    ASSERT_TRUE(peer.Send(frame.data(), bytes));
    peer.Close();
    EXPECT_TRUE(door.Closed(++closed));
  }
  EXPECT_TRUE(door.shard.calls.empty());
  EXPECT_EQ(door.pool.live_buffers(), 1u);  // the call that this test keeps
}

// A raw shard, and a channel to it.
struct RawShard {
  BufferPool pool;
  std::string address = FreshAddress();
  RawSocket listener;
  RecordingSink sink;
  IoLoop loop;
  std::unique_ptr<ExpertChannel> channel;

  RawShard() {
    listener.Listen(address);
    channel = ConnectLocal(address, &loop, &pool, &sink);
  }
  RawSocket Welcome(Credit credit = Credit{100, 1 << 20}) {
    RawSocket peer = listener.Accept();
    CHECK(!peer.ReadFrame().empty());  // HELLO
    WelcomeInfo info;
    info.models = {BindCode::kOk};
    info.classes = {BindCode::kOk};
    info.credit = credit;
    CHECK(peer.SendFrame(EncodeWelcome(MakeHello(), info, &pool)));
    CHECK(sink.WaitFor([](const auto& x) { return x.ups == x.downs + 1; }));
    return peer;
  }
  absl::Status Send(uint64_t id, std::shared_ptr<const CallBody> body) {
    return channel->Send(CallId{id}, std::move(body), CallOptions{Epoch{}, 60'000'000, 0});
  }
};

TEST(LocalLink, AShardThatDiesInAResultIsDownAndTheNextStreamWorks) {
  RawShard shard;
  for (int i = 1; i <= 2; ++i) {
    RawSocket peer = shard.Welcome();
    ASSERT_TRUE(shard.Send(1, MakeBody(&shard.pool, {1})).ok());
    ASSERT_FALSE(peer.ReadFrame().empty());
    ASSERT_TRUE(peer.SendLength(256));
    ASSERT_TRUE(peer.Send("half of a frame", 15));
    peer.Close();
    ASSERT_TRUE(shard.sink.WaitFor([&](const auto& x) { return x.downs == i; }));
    EXPECT_EQ(shard.sink.heard().down.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_TRUE(shard.sink.heard().results.empty());
  EXPECT_TRUE(shard.sink.heard().rejects.empty());
}

TEST(LocalLink, AShardThatSendsNonsenseIsDown) {
  RawShard shard;
  RawSocket peer = shard.Welcome();
  ASSERT_TRUE(peer.SendLength(kLengthMax + 1));
  ASSERT_TRUE(shard.sink.WaitFor([](const auto& x) { return x.downs == 1; }));
  EXPECT_EQ(shard.sink.heard().down.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(peer.Ended());
}

TEST(LocalLink, APeerThatDoesNotReadNeverBlocksTheSenderAndGetsAllOnceItReads) {
  RawShard shard;
  RawSocket peer = shard.Welcome(Credit{1 << 20, 1 << 30});
  constexpr uint64_t kCalls = 60'000;  // about 20 MB: the socket holds a few
  const auto body = MakeBody(&shard.pool, {1, 2, 3});
  for (uint64_t id = 1; id <= kCalls; ++id) ASSERT_TRUE(shard.Send(id, body).ok());
  for (uint64_t id = 1; id <= kCalls; ++id) {
    const std::vector<std::byte> frame = peer.ReadFrame();
    ASSERT_EQ(frame.size(), body->frame_bytes());
    uint64_t got = 0;
    std::memcpy(&got, frame.data() + 8, sizeof got);  // call_id
    ASSERT_EQ(got, id);
  }
  EXPECT_EQ(shard.sink.heard().downs, 0);
}

TEST(LocalLink, MoreWaitingFramesThanTheBoundEndTheStream) {
  RawShard shard;
  RawSocket peer = shard.Welcome(Credit{1 << 20, 1 << 30});
  const auto body = MakeBody(&shard.pool, {1});
  absl::Status sent;
  for (uint64_t id = 1; id <= 2 * kLinkQueueFramesMax && sent.ok(); ++id) sent = shard.Send(id, body);
  ASSERT_TRUE(shard.sink.WaitFor([](const auto& x) { return x.downs == 1; }));
  EXPECT_EQ(shard.sink.heard().down.code(), absl::StatusCode::kResourceExhausted);
}

TEST(LocalLink, AChannelEndsAtOnceWhenItsPeerDoesNotRead) {
  RawShard shard;
  RawSocket peer = shard.Welcome(Credit{1 << 20, 1 << 30});
  const auto body = MakeBody(&shard.pool, {1});
  for (uint64_t id = 1; id <= 30'000; ++id) ASSERT_TRUE(shard.Send(id, body).ok());
  shard.channel.reset();  // a hang fails the test
  EXPECT_LT(shard.sink.heard().downs, 2);
}

// Runs `child` as user nobody in a process of its own, which may only make system calls.
class Nobody {
 public:
  template <class F>
  explicit Nobody(F&& child) : pid_(fork()) {
    CHECK(pid_ >= 0);
    if (pid_ != 0) return;
    if (setresuid(65534, 65534, 65534) != 0) _exit(99);
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // after setresuid, which clears it
    _exit(child());
  }
  int Wait() {
    int status = 0;
    CHECK(waitpid(pid_, &status, 0) == pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  const pid_t pid_;
};

TEST(LocalLink, AShardTurnsAwayARouterOfAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  Door door;
  const BufferRef hello = EncodeHello(MakeHello(), Lane::kDecode, &door.pool);
  const auto ask = [&] {
    RawSocket peer;
    if (!peer.Connect(door.address)) return 2;
    peer.SendFrame(hello);  // may find the stream ended
    return peer.Ended() ? 1 : 0;
  };
  EXPECT_EQ(Nobody(ask).Wait(), 1);
  EXPECT_TRUE(door.shard.hellos.empty());
  door.ExpectServes();
}

TEST(LocalLink, ARouterKeepsAwayFromADoorOfAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  BufferPool pool;
  IoLoop loop;
  RecordingSink sink;
  ChannelSession session(MakeHello(), Lane::kDecode, &pool, &sink);
  const std::string address = FreshAddress();
  LocalOpener opener(address, &loop, &pool);
  int listening[2], done[2];
  ASSERT_EQ(pipe(listening), 0);
  ASSERT_EQ(pipe(done), 0);
  Nobody holder([&] {
    RawSocket door;
    door.Listen(address);
    char byte = 1;
    if (write(listening[1], &byte, 1) != 1) return 2;
    return read(done[0], &byte, 1) == 1 ? 0 : 3;
  });
  char byte = 0;
  ASSERT_EQ(read(listening[0], &byte, 1), 1);
  const auto opened = opener.Open(&session, [](const absl::Status&) {});
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(Message(opened.status()).find("another user"), std::string::npos) << opened.status();
  ASSERT_EQ(write(done[1], &byte, 1), 1);
  EXPECT_EQ(holder.Wait(), 0);
  for (const int fd : {listening[0], listening[1], done[0], done[1]}) close(fd);
}

}  // namespace
}  // namespace consilium
