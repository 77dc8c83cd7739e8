// Random calls, cancels, closures and commands: each call is answered exactly once and rightly, unless it was
// cancelled or its stream closed; credit is never exceeded; nothing leaks.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "services/expert/core_fixture.h"

namespace consilium {
namespace {

struct Sent {
  std::vector<uint64_t> expected;
  bool cancelled = false;
  int answers = 0;
};

class Chaos {
 public:
  explicit Chaos(uint32_t seed) : rng_(seed), f_(MakeOptions()) {}

  void Run() {
    for (int step = 0; step < 400; ++step) {
      Step();
      f_.now += static_cast<MonoTime>(Pick(300));
      ReadAnswers();
    }
    while (f_.job.has_value() || !f_.loads.empty()) {
      f_.FinishLoads();
      if (f_.job.has_value()) f_.FinishJob();
    }
    ReadAnswers();
    for (const auto& [id, sent] : open_)
      EXPECT_TRUE(sent.cancelled) << "call " << id.second << " was never answered";
    EXPECT_TRUE(f_.core->idle());
    EXPECT_EQ(f_.core->queued_rows(), 0u);
    for (const ConnId conn : conns_) f_.Do(expert_event::ConnClosed{conn});
    EXPECT_EQ(f_.core->streams(), 0u);
    EXPECT_EQ(f_.pool.live_buffers(), 0u) << "frames leaked";
  }

 private:
  static ExpertCoreOptions MakeOptions() {
    ExpertCoreOptions o = CoreFixture::Options();
    o.credit_rows = 24;
    o.job_slots_max = 12;
    o.heartbeat_us = 1000;
    return o;
  }
  uint32_t Pick(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }

  void Step() {
    switch (Pick(12)) {
      case 0:
        conns_.push_back(++last_conn_);
        used_[last_conn_] = 0;
        f_.Open(last_conn_, Pick(2) == 0 ? Lane::kDecode : Lane::kBulk);
        break;
      case 1:
        if (conns_.size() > 2) CloseOne();
        break;
      case 2:
        f_.Do(expert_event::Tick{});
        break;
      case 3:
        Cancel();
        break;
      case 4:
        Command();
        break;
      case 5:
        f_.FinishLoads();
        break;
      case 6:
      case 7:
        if (f_.job.has_value()) f_.FinishJob();
        break;
      default:
        Call();
    }
  }

  void Call() {
    if (conns_.empty()) return;
    const ConnId conn = conns_[Pick(static_cast<uint32_t>(conns_.size()))];
    std::vector<CoreFixture::Row> rows;
    const uint32_t n = 1 + Pick(6);
    for (uint32_t r = 0; r < n; ++r) {
      std::set<uint16_t> experts;
      while (experts.size() < 1 + Pick(3)) experts.insert(static_cast<uint16_t>(Pick(8)));
      rows.push_back({rng_(), {experts.begin(), experts.end()}});
    }
    if (used_[conn] + n > f_.credit[conn].rows) return;  // a good router waits
    used_[conn] += n;
    const auto layer = static_cast<uint16_t>(Pick(3));
    const auto body = f_.Body(layer, rows, Pick(2) == 0);
    const uint64_t id = ++last_call_;
    open_[{conn, id}] = Sent{CoreFixture::Expected(*body, rows), false, 0};
    f_.Do(expert_event::FrameIn{conn, body->Frame(CallId{id}, Epoch{}, 1 + Pick(2000), 0)});
  }

  void Cancel() {
    if (open_.empty()) return;
    auto it = std::next(open_.begin(), Pick(static_cast<uint32_t>(open_.size())));
    it->second.cancelled = true;
    f_.Cancel(it->first.first, it->first.second);
  }

  void Command() {
    const auto kind = static_cast<expert_event::Command::Kind>(Pick(3));
    f_.Command(kind, 100 + Pick(1000),
               {CoreFixture::Key(static_cast<uint16_t>(Pick(3)), static_cast<uint16_t>(Pick(8)))});
  }

  void CloseOne() {
    const uint32_t i = Pick(static_cast<uint32_t>(conns_.size()));
    const ConnId conn = conns_[i];
    conns_.erase(conns_.begin() + i);
    std::erase_if(open_, [&](const auto& entry) { return entry.first.first == conn; });
    closed_.insert(conn);
    f_.Do(expert_event::ConnClosed{conn});
  }

  void ReadAnswers() {
    for (const auto& a : std::exchange(f_.answers, {})) {
      ASSERT_FALSE(closed_.contains(a.conn)) << "an answer on a closed stream";
      if (a.kind != frame::Kind::kResult && a.kind != frame::Kind::kReject) continue;
      const auto it = open_.find({a.conn, a.call});
      ASSERT_NE(it, open_.end()) << "answered twice or never asked: call " << a.call;
      if (a.kind == frame::Kind::kResult) {
        EXPECT_EQ(a.values, it->second.expected);
      }
      EXPECT_NE(a.code, frame::RejectCode::kOverCredit);
      EXPECT_NE(a.code, frame::RejectCode::kBadFrame);
      open_.erase(it);
    }
  }

  std::mt19937 rng_;
  CoreFixture f_;
  std::vector<ConnId> conns_;
  std::set<ConnId> closed_;
  ConnId last_conn_ = 0;
  uint64_t last_call_ = 0;
  std::map<ConnId, uint64_t> used_;
  std::map<std::pair<ConnId, uint64_t>, Sent> open_;
};

TEST(ExpertCoreProperty, EveryCallIsAnsweredExactlyOnceAndRightly) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Chaos(seed).Run();
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace consilium
