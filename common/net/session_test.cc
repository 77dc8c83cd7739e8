// What the sessions refuse. The good paths are in the channel contract.
#include "common/net/session.h"

#include <gtest/gtest.h>

#include "common/net/channel_fixture.h"
#include "common/net/frame_samples.h"

namespace consilium {
namespace {

// Keeps what is written.
struct NullLink final : FrameLink {
  std::vector<WireFrame> written;
  absl::Status closed;
  void Write(WireFrame frame) override { written.push_back(std::move(frame)); }
  void Close(const absl::Status& why) override { closed = why; }
};

struct ServerSide : ::testing::Test {
  BufferPool pool;
  ScriptedShard shard{&pool};
  std::shared_ptr<NullLink> link = std::make_shared<NullLink>();
  ServerSession session{1, link, &shard};

  absl::Status In(BufferRef frame) { return session.OnFrame(WireFrame{std::move(frame), false, {}}); }
};

TEST_F(ServerSide, TheFirstFrameMustBeHello) {
  EXPECT_EQ(In(frame::EncodeBare(frame::Kind::kBye, &pool)).code(), absl::StatusCode::kInvalidArgument);
  session.OnLinkDown();
  EXPECT_EQ(shard.closed, 0);
}

TEST_F(ServerSide, AHelloOfAnotherWireVersionIsRefused) {
  // wire_min = wire_max = 2: fields 1 and 2 of Hello.
  EXPECT_EQ(In(frame::EncodePayload(frame::Kind::kHello, std::string("\x08\x02\x10\x02", 4), &pool)).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ServerSide, AGarbledHelloIsRefused) {
  EXPECT_FALSE(In(frame::EncodePayload(frame::Kind::kHello, "\xFF\xFF\xFF", &pool)).ok());
}

TEST_F(ServerSide, ASecondHelloOrAShardsKindIsRefused) {
  ASSERT_TRUE(In(EncodeHello(MakeHello(), Lane::kDecode, &pool)).ok());
  EXPECT_FALSE(In(EncodeHello(MakeHello(), Lane::kDecode, &pool)).ok());
  EXPECT_FALSE(In(frame::EncodeCredit(1, 1, &pool)).ok());
}

TEST_F(ServerSide, BindAddsModels) {
  ASSERT_TRUE(In(EncodeHello(MakeHello(), Lane::kDecode, &pool)).ok());
  ASSERT_TRUE(In(EncodeBind(MakeHello(), Lane::kDecode, &pool)).ok());
  EXPECT_EQ(shard.binds.size(), 1u);
}

TEST_F(ServerSide, ClosesOnceAndTakesNothingAfterwards) {
  ASSERT_TRUE(In(EncodeHello(MakeHello(), Lane::kDecode, &pool)).ok());
  session.OnLinkDown();
  session.OnLinkDown();
  EXPECT_EQ(shard.closed, 1);
  EXPECT_FALSE(In(frame::EncodeCancel(CallId{1}, &pool)).ok());
}

struct ClientSide : ::testing::Test {
  BufferPool pool;
  RecordingSink sink;
  std::shared_ptr<NullLink> link = std::make_shared<NullLink>();
  ChannelSession session{MakeHello(), Lane::kDecode, &pool, &sink};

  absl::Status In(BufferRef frame) { return session.OnFrame(WireFrame{std::move(frame), false, {}}); }
  absl::Status Welcome() {
    WelcomeInfo info;
    info.models = {BindCode::kOk};
    info.classes = {BindCode::kOk};
    info.credit = Credit{10, 10000};
    return In(EncodeWelcome(MakeHello(), info, &pool));
  }
};

TEST_F(ClientSide, NothingMayComeBeforeWelcome) {
  session.OnLinkUp(link);
  EXPECT_EQ(link->written.size(), 1u);
  EXPECT_FALSE(In(frame::EncodeCredit(1, 1, &pool)).ok());
  EXPECT_FALSE(session.up());
}

TEST_F(ClientSide, ASecondWelcomeIsRefused) {
  session.OnLinkUp(link);
  ASSERT_TRUE(Welcome().ok());
  EXPECT_TRUE(session.up());
  EXPECT_FALSE(Welcome().ok());
}

TEST_F(ClientSide, AnAnswerToAnUnknownCallIsDropped) {
  session.OnLinkUp(link);
  ASSERT_TRUE(Welcome().ok());
  EXPECT_TRUE(In(SampleResult(&pool)).ok());
  EXPECT_TRUE(In(frame::EncodeReject(CallId{5}, Epoch{}, frame::RejectCode::kExpired, 0, "", &pool)).ok());
  EXPECT_TRUE(sink.heard().results.empty());
  EXPECT_TRUE(sink.heard().rejects.empty());
}

TEST_F(ClientSide, AResultOfAnotherRowTypeIsAnInternalReject) {
  session.OnLinkUp(link);
  ASSERT_TRUE(Welcome().ok());
  ASSERT_TRUE(session.Send(CallId{42}, *MakeBody(&pool, {1, 2}), CallOptions{Epoch{}, 1, 0}).ok());
  EXPECT_TRUE(In(SampleResult(&pool)).ok());  // call 42, but f32
  ASSERT_EQ(sink.heard().rejects.size(), 1u);
  EXPECT_EQ(sink.heard().rejects[0].code, frame::RejectCode::kInternal);
  EXPECT_EQ(session.calls_open(), 0u);
}

TEST_F(ClientSide, CallsOpenAtTheEndOfTheLinkAreForgotten) {
  session.OnLinkUp(link);
  ASSERT_TRUE(Welcome().ok());
  ASSERT_TRUE(session.Send(CallId{1}, *MakeBody(&pool, {1}), CallOptions{Epoch{}, 1, 0}).ok());
  session.OnLinkDown(absl::UnavailableError("gone"));
  session.OnLinkDown(absl::UnavailableError("gone"));
  EXPECT_EQ(session.calls_open(), 0u);
  EXPECT_EQ(sink.heard().downs, 1);
}

}  // namespace
}  // namespace consilium
