// Whole decode steps of 16 sequences allocate nothing per message: session -> shell -> core -> plan -> calls
// -> in-process link -> three shards -> results -> combine -> tokens, with the real shells and their threads.
//
// Not counted, exactly: what the hash backend of the worker does inside a stage (it stands for the kernels),
// and one list of tokens per Emit, which the session takes away (the `allowed` below). A sequence's own token
// and page lists grow by doubling: the steps looked at lie between two doublings.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "common/net/inproc_channel.h"
#include "common/placement/replica_choice.h"
#include "common/testing/allocation_count.h"
#include "services/attention/attention_shell.h"
#include "services/expert/shard_fixture.h"

namespace consilium {
namespace {

constexpr uint32_t kSequences = 16, kPrompt = 40, kShards = 3;
constexpr Position kFirst = 170,
                   kLast = 250;  // lists of 40 tokens double at 80, 160 and 320; pages at 8 and 16

// Stages of the hash backend on the shell's compute thread, uncounted; the way there and back is counted.
class QuietBackend final : public LayerBackend {
 public:
  QuietBackend(const HashModel& model, BufferPool* pool, AttentionShell* shell)
      : inner_(model, pool), run_(shell->run_compute()), post_(shell->post_done()) {}
  const BackendShape& shape() const override { return inner_.shape(); }
  void Run(const StageJob& job, std::function<void(StageOut)> done) override {
    Stage* stage = &stages_[job.flight.value];
    stage->job = job;
    stage->done = std::move(done);
    run_([this, stage] {
      {
        Uncounted stand_in;
        inner_.Run(stage->job, [stage](StageOut out) { stage->out = std::move(out); });
      }
      post_([stage] {
        const auto callback = std::move(stage->done);
        callback(std::move(stage->out));
      });
    });
  }
  void Abandon(FlightId flight) override { inner_.Abandon(flight); }
  absl::Status ExportBlock(KvBlockId, std::vector<std::byte>*) override { return absl::OkStatus(); }
  absl::Status ImportBlock(KvBlockId, std::span<const std::byte>) override { return absl::OkStatus(); }
  absl::Status ExportState(StateId, std::vector<std::byte>*) override { return absl::OkStatus(); }
  absl::Status ImportState(StateId, std::span<const std::byte>) override { return absl::OkStatus(); }

 private:
  struct Stage {
    StageJob job;
    std::function<void(StageOut)> done;
    StageOut out;
  };
  HashLayerBackend inner_;
  std::function<void(std::function<void()>)> run_, post_;
  Stage stages_[8];
};

// Looks at the counter at every Emit, on the strand.
class StepCounter final : public AttentionShell::SessionSink {
 public:
  void OnEvents(SessionEvents events) override {
    constexpr uint64_t allowed = 1;  // this list of tokens
    const uint64_t now = allocations;
    const bool steady = !events.tokens.empty() &&
                        std::all_of(events.tokens.begin(), events.tokens.end(), [](const SessionToken& t) {
                          return t.position >= kFirst && t.position < kLast;
                        });
    std::lock_guard lock(mutex_);
    if (steady && steady_before_) {
      ++steps;
      tokens += events.tokens.size();
      if (now - last_ > allowed) ++dirty;
      most = std::max(most, now - last_);
    }
    steady_before_ = steady;
    ended_ += events.finishes.size() + events.errors.size();
    wake_.notify_all();
    last_ = now;
  }
  void WaitFor(size_t ended) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(wake_.wait_for(lock, std::chrono::seconds(120), [&] { return ended_ >= ended; }));
  }
  // Of one round of requests.
  void Clear() {
    std::lock_guard lock(mutex_);
    steps = tokens = dirty = most = 0;
  }
  uint64_t steps = 0, tokens = 0, dirty = 0, most = 0;

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  size_t ended_ = 0;
  uint64_t last_ = 0;
  bool steady_before_ = false;
};

struct Cluster {
  BufferPool pool;
  Metrics metrics, shard_metrics[kShards];
  HashModel model{.layers = 3, .kv_blocks = 1024, .recurrent = true, .state_slots = 256};
  std::unique_ptr<HashShard> shards[kShards];
  std::unique_ptr<InprocListener> doors[kShards];
  AttentionShell shell{&pool, &metrics};
  QuietBackend backend{model, &pool, &shell};

  Cluster() {
    std::vector<PlacementShard> list;
    std::vector<PlacementView::Entry> entries;
    for (uint32_t s = 0; s < kShards; ++s) {
      shards[s] = std::make_unique<HashShard>(&pool, CoreFixture::Options(), nullptr, &shard_metrics[s]);
      doors[s] = std::make_unique<InprocListener>(shards[s]->shard.get());
      list.push_back({ShardId(s), "s" + std::to_string(s), "", 1});
    }
    for (uint16_t l = 1; l < model.layers; ++l) {
      for (uint16_t e = 0; e < model.experts; ++e)
        entries.push_back({LayerId(l), ExpertId(e), {ShardId(e % kShards)}});
    }
    AttentionConfig config;
    config.shape = HashShape(model);
    config.manifest = "m";
    AttentionShell::Hooks hooks;
    hooks.connect = [this](const PlacementShard& shard, Lane lane, ExpertChannel::Sink* sink) {
      return std::make_unique<InprocChannel>(CoreFixture::Hello(), lane, doors[shard.id.value].get(), &pool,
                                             sink);
    };
    shell.Start(config, &backend, std::move(hooks));
    shell.SetPlacement(
        std::make_shared<PlacementView>(Epoch::Make(0, 1), model.layers, model.experts, list, entries));
  }
  ~Cluster() { shell.Stop(); }
};

TEST(StepAllocation, SteadyDecodeStepsOf16SequencesAllocateNothingPerMessage) {
  Cluster cluster;
  auto sink = std::make_shared<StepCounter>();
  const SessionId session = cluster.shell.OpenSession(sink);
  size_t ended = 0;
  for (uint64_t round = 0; round < 4; ++round) {  // the first ones fill the pools
    sink->Clear();
    for (uint64_t r = 0; r < kSequences; ++r) {
      SessionSubmit submit;
      submit.request = round * kSequences + r;
      submit.manifest = "m";
      for (uint32_t i = 0; i < kPrompt; ++i)
        submit.prompt.push_back(static_cast<TokenId>((submit.request * 131 + i * 17) % 1000));
      submit.sampling.seed = submit.request;
      submit.max_tokens = kLast + 2 - kPrompt;
      cluster.shell.Submit(session, std::move(submit));
    }
    ended += kSequences;
    sink->WaitFor(ended);
  }
  cluster.shell.CloseSession(session);
  std::printf("%lu steps of %lu tokens, %lu with more than the allowed allocation, at most %lu\n",
              sink->steps, sink->tokens, sink->dirty, sink->most);
  EXPECT_GE(sink->steps, 60u);
  EXPECT_GE(sink->tokens, sink->steps * kSequences / 4) << "steps were of many sequences";
  // Pools keep their high-water mark, which depends on the scheduler: a rare step raises it. An allocation
  // per message, call or step would be in all of them.
  EXPECT_LE(sink->dirty, sink->steps / 20);
}

TEST(StepAllocation, ChoosingReplicasOf64RowsTop8AllocatesNothing) {
  std::vector<PlacementView::Entry> entries;
  std::vector<PlacementShard> shards;
  std::vector<ShardLoad> loads;
  for (uint32_t s = 0; s < 8; ++s) {
    shards.push_back({ShardId(s), "s", "", 1});
    loads.push_back({ShardId(s), true, s, 0, 1.0, 0.0});
  }
  for (uint16_t e = 0; e < 256; ++e)
    entries.push_back({LayerId(0), ExpertId(e), {ShardId(e % 7), ShardId(7)}});
  const PlacementView view(Epoch::Make(0, 1), 1, 256, shards, entries);
  std::vector<uint16_t> experts;
  for (uint32_t i = 0; i < 64 * 8; ++i) experts.push_back(static_cast<uint16_t>(i * 97 % 256));
  ReplicaChoice choice;
  ChooseReplicas(view, LayerId(0), experts, loads, &choice);
  const uint64_t before = allocations;
  const auto begin = std::chrono::steady_clock::now();
  constexpr int kRepeats = 1000;
  for (int i = 0; i < kRepeats; ++i) ChooseReplicas(view, LayerId(0), experts, loads, &choice);
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(allocations, before);
  EXPECT_TRUE(choice.missing.empty());
  std::printf("64 rows x top-8 of 256 experts on 8 shards: %.1f us a choice\n", took.count() / kRepeats);
}

}  // namespace
}  // namespace consilium
