// The controller's gRPC shell on loopback with real attachments of all three roles.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "common/base/status.h"
#include "common/net/control_client.h"
#include "services/controller/controller_service.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kPatience = std::chrono::seconds(60);  // only a hung test waits that long

// A value that other threads change and a test waits for.
class Awaited {
 public:
  template <class F>
  void Set(F&& change) {
    std::lock_guard<std::mutex> lock(mutex_);
    change();
    wake_.notify_all();
  }
  template <class F>
  bool Wait(F&& condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    return wake_.wait_for(lock, kPatience, condition);
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
};

control::MemberIdentity Who(const std::string& name, uint64_t incarnation) {
  return {.name = name,
          .incarnation = incarnation,
          .address = "127.0.0.1:" + std::to_string(incarnation),
          .admin = "",
          .model_id = "tiny",
          .manifest = std::string(32, 'm'),
          .class_name = "hash",
          .fingerprint = 7};
}

class FakeShard : public ShardAttachment::Sink {
 public:
  FakeShard(const std::string& controller, const control::MemberIdentity& who) {
    std::lock_guard<std::mutex> lock(mutex_);
    attachment_ = AttachShard({controller}, who, {{LayerId{1}, 8, 100}}, 0, this);
    raw_ = attachment_.get();
  }
  ~FakeShard() override { attachment_.reset(); }
  void OnShardId(ShardId given) override {
    state.Set([&] { id = given; });
  }
  void OnCommand(const control::ShardCommand& command) override {
    std::vector<control::HostedExpert> changed;
    const bool load = command.kind == control::CommandKind::kLoad;
    for (const control::ExpertKey& key : command.experts) {
      changed.push_back(
          {key.layer, key.expert, load ? control::HostedState::kReady : control::HostedState::kAbsent});
    }
    state.Set([&] { (load ? loads : drops) += changed.size(); });
    std::lock_guard<std::mutex> lock(mutex_);
    raw_->Report(changed, {{command.op_id, true, ""}});
  }
  void OnDown(const absl::Status& why) override {
    state.Set([&] { down = Message(why); });
  }
  Awaited state;
  ShardId id;
  size_t loads = 0, drops = 0;
  std::string down;

 private:
  // Sink calls may come before the constructor stored it, and while the destructor takes it down.
  std::mutex mutex_;
  std::unique_ptr<ShardAttachment> attachment_;
  ShardAttachment* raw_ = nullptr;
};

class FakeRouter : public RouterAttachment::Sink {
 public:
  FakeRouter(const std::string& controller, const control::MemberIdentity& who) {
    std::lock_guard<std::mutex> lock(mutex_);
    attachment_ = AttachRouter({controller}, who, this);
    raw_ = attachment_.get();
    attachment_->SetReady(true);
  }
  ~FakeRouter() override { attachment_.reset(); }
  void OnPlacement(std::shared_ptr<const PlacementView> next) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      raw_->Ack(next->epoch());
    }
    state.Set([&] {
      rising &= view == nullptr || next->epoch() > view->epoch();
      view = std::move(next);
    });
  }
  void OnDown(const absl::Status& why) override {
    state.Set([&] {
      ++downs;
      down = Message(why);
    });
  }
  bool Covered() const { return view != nullptr && view->covered(LayerId{1}); }
  Awaited state;
  std::shared_ptr<const PlacementView> view;
  bool rising = true;
  int downs = 0;
  std::string down;

 private:
  std::mutex mutex_;
  std::unique_ptr<RouterAttachment> attachment_;
  RouterAttachment* raw_ = nullptr;
};

class FakeGateway : public GatewayAttachment::Sink {
 public:
  explicit FakeGateway(const std::string& controller) {
    attachment_ = AttachGateway({controller}, "g", 1, this);
  }
  ~FakeGateway() override { attachment_.reset(); }
  void OnCluster(const control::ClusterView& next) override {
    state.Set([&] {
      view = next;
      ++updates;
    });
  }
  Awaited state;
  control::ClusterView view;
  int updates = 0;

 private:
  std::unique_ptr<GatewayAttachment> attachment_;
};

class ControllerShell : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::temp_directory_path() /
           ("controller_test_" + std::to_string(getpid()) + "_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
  }
  void TearDown() override {
    service_.reset();
    std::filesystem::remove_all(dir_);
  }
  void Start(uint32_t expected_shards, const std::string& listen = "127.0.0.1:0") {
    ControllerServiceOptions options{.listen = listen, .state_dir = dir_.string(), .core = {}};
    options.core.expected_shards = expected_shards;
    auto service = ControllerService::Start(options, &metrics_);
    ASSERT_TRUE(service.ok()) << ToString(service.status());
    service_ = std::move(*service);
    address_ = service_->address();
  }
  std::filesystem::path dir_;
  Metrics metrics_;
  std::unique_ptr<ControllerService> service_;
  std::string address_;
};

TEST_F(ControllerShell, ShardsLoadRoutersSeeThePlacementAndGatewaysTheWorkers) {
  Start(2);
  FakeShard a(address_, Who("a", 11)), b(address_, Who("b", 12));
  FakeRouter router(address_, Who("r", 13));
  FakeGateway gateway(address_);
  ASSERT_TRUE(router.state.Wait([&] { return router.Covered(); }));
  ASSERT_TRUE(a.state.Wait([&] { return a.loads == 4; }));
  ASSERT_TRUE(b.state.Wait([&] { return b.loads == 4; }));
  ASSERT_TRUE(gateway.state.Wait([&] {
    return gateway.view.covered && gateway.view.workers.size() == 1 && gateway.view.workers[0].ready;
  }));
  EXPECT_EQ(gateway.view.workers[0].address, "127.0.0.1:13");
  EXPECT_EQ(gateway.view.workers[0].manifest, std::string(32, 'm'));
  router.state.Set([&] {
    EXPECT_EQ(router.view->FindShard(a.id)->address, "127.0.0.1:11");
    EXPECT_TRUE(router.rising);
  });
  const auto members = ListMembers(address_, 60000);
  ASSERT_TRUE(members.ok()) << ToString(members.status());
  std::vector<std::string> lines;
  for (const MemberInfo& m : *members) lines.push_back(m.role + " " + m.name + " " + m.state);
  EXPECT_THAT(lines,
              ElementsAre("expert a ready", "expert b ready", "attention r ready", "gateway g attached"));
  service_->UpdateMetrics();
  EXPECT_THAT(metrics_.Text(), HasSubstr("consilium_controller_experts{state=\"covered\"} 8"));
  EXPECT_THAT(metrics_.Text(), HasSubstr("consilium_controller_members{role=\"expert\"} 2"));
}

TEST_F(ControllerShell, ALostShardLeavesTheViewAndComesBackUnderANewId) {
  Start(2);
  auto a = std::make_unique<FakeShard>(address_, Who("a", 11));
  FakeShard b(address_, Who("b", 12));
  FakeRouter router(address_, Who("r", 13));
  ASSERT_TRUE(router.state.Wait([&] { return router.Covered(); }));
  const ShardId old = a->id;
  a.reset();
  ASSERT_TRUE(router.state.Wait([&] { return router.view->FindShard(old) == nullptr && !router.Covered(); }));
  FakeShard again(address_, Who("a", 21));
  ASSERT_TRUE(router.state.Wait([&] { return router.Covered(); }));
  ASSERT_TRUE(again.state.Wait([&] { return again.loads == 4 && again.id != old; }));
}

TEST_F(ControllerShell, MembersSurviveARestartOfTheControllerAndKeepWhatTheyKnow) {
  Start(1);
  FakeShard a(address_, Who("a", 11));
  FakeRouter router(address_, Who("r", 13));
  FakeGateway gateway(address_);
  ASSERT_TRUE(router.state.Wait([&] { return router.Covered(); }));
  ASSERT_TRUE(gateway.state.Wait([&] { return gateway.view.covered && gateway.view.workers.size() == 1; }));
  const Epoch before = router.view->epoch();
  const ShardId id = a.id;
  const std::string address = address_;
  service_.reset();
  EXPECT_THAT(ReadControllerState(dir_.string())->members, ElementsAre("router r", "shard a"));
  ASSERT_TRUE(router.state.Wait([&] { return router.downs == 1; }));
  router.state.Set([&] { EXPECT_TRUE(router.Covered()) << "kept while the controller is away"; });
  Start(1, address);
  ASSERT_TRUE(router.state.Wait([&] { return router.view->epoch() > before; }));
  router.state.Set([&] {
    EXPECT_EQ(router.view->epoch().term(), before.term() + 1);
    EXPECT_TRUE(router.Covered());
    EXPECT_TRUE(router.rising);
  });
  a.state.Set([&] {
    EXPECT_EQ(a.id, id);
    EXPECT_EQ(a.loads, 8u) << "nothing is loaded twice";
    EXPECT_EQ(a.drops, 0u);
  });
}

TEST_F(ControllerShell, AMemberWithAnotherModelIsToldWhy) {
  Start(1);
  FakeShard a(address_, Who("a", 11));
  ASSERT_TRUE(a.state.Wait([&] { return a.loads == 8; }));
  control::MemberIdentity who = Who("r", 13);
  who.fingerprint = 8;
  FakeRouter router(address_, who);
  ASSERT_TRUE(router.state.Wait([&] { return router.down.find("fingerprint 8") != std::string::npos; }))
      << router.down;
}

TEST_F(ControllerShell, AttachmentsWaitForAControllerThatIsNotThereYet) {
  Start(1);
  const std::string address = address_;
  service_.reset();
  FakeRouter router(address, Who("r", 13));
  FakeShard a(address, Who("a", 11));
  ASSERT_TRUE(router.state.Wait([&] { return router.downs == 1; }));
  Start(1, address);
  ASSERT_TRUE(router.state.Wait([&] { return router.Covered(); }));
  EXPECT_EQ(router.downs, 1) << "told once, not per attempt";
}

TEST_F(ControllerShell, ABusyPortIsOneClearError) {
  Start(1);
  const auto second = ControllerService::Start({.listen = address_, .state_dir = "", .core = {}}, &metrics_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(second.status()),
              HasSubstr("cannot listen on " + address_ + ": Address already in use"));
}

TEST_F(ControllerShell, TheStateFileKeepsTermAndMembers) {
  EXPECT_EQ(ReadControllerState(dir_.string())->term, 0u);
  ASSERT_TRUE(WriteControllerState(dir_.string(), {7, {"router r", "shard a"}}).ok());
  const auto state = ReadControllerState(dir_.string());
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->term, 7u);
  EXPECT_THAT(state->members, ElementsAre("router r", "shard a"));
}

TEST_F(ControllerShell, ABrokenStateFileIsNamedWithItsLine) {
  std::filesystem::create_directories(dir_);
  std::ofstream(dir_ / "controller.state") << "term x\n";
  const auto state = ReadControllerState(dir_.string());
  EXPECT_THAT(Message(state.status()),
              HasSubstr("controller.state line 1: 'term NUMBER' expected, got 'term x'"));
}

}  // namespace
}  // namespace consilium
