// How the CPU backend behaves at its seam; its numbers are tested in tests/golden.
#include "services/attention/cpu_layer_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "common/base/status.h"
#include "common/testing/allocation_count.h"
#include "common/testing/tiny_checkpoint.h"
#include "services/attention/cache_split.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;

class CpuLayerBackendTest : public ::testing::Test {
 protected:
  void Open(CpuLayerOptions options = {}) {
    greedy_.temperature = 0;
    ASSERT_TRUE(WriteTinyCheckpoint(config_, folder_.path() + "/m").ok());
    spec_ = *ReadModelSpec(folder_.path() + "/m");
    manifest_ = *OpenManifest(folder_.path() + "/m", "");
    const auto store = OpenFolderStore(manifest_);
    options.kv_blocks = 8;
    options.state_slots = 4;
    options.flights = 2;
    options.rows_max = 64;
    auto backend = CpuLayerBackend::Create(spec_, manifest_, store.get(), *kernels::FindOps("auto"), nullptr,
                                           &buffers_, options);
    ASSERT_TRUE(backend.ok()) << ToString(backend.status());
    backend_ = *std::move(backend);
    slot_ = std::vector<std::byte>(backend_->shape().row_bytes_out);
  }
  // Rows 0..n-1 of one sequence in blocks 0..7, the last one sampled.
  void Fill(FlightBatch* batch, uint32_t n) {
    for (uint32_t i = 0; i < 8; ++i) blocks_.push_back(KvBlockId(i));
    for (uint32_t i = 0; i < n; ++i) batch->rows.push_back({i % 50, i, 0, RowKind::kPrompt});
    batch->sequences.push_back({blocks_});
    if (backend_->shape().state_slots > 0) batch->sequences[0].state_out = StateId(1);
    SampleRow s;
    s.row = n - 1;
    s.sampling = &greedy_;
    batch->samples.push_back(s);
    slots_.assign(n * spec_.gate.top_k, slot_.data());
  }
  StageJob Job(StageKind kind, const FlightBatch& batch, uint32_t flight = 0) {
    StageJob job;
    job.flight = FlightId(flight);
    job.kind = kind;
    job.batch = &batch;
    if (kind == StageKind::kCombine) job.slot_outputs = slots_;
    return job;
  }
  StageOut RunInline(const StageJob& job) {
    StageOut got;
    backend_->Run(job, [&got](StageOut out) { got = std::move(out); });
    return got;
  }

  // From start to samples, all experts answering zeros.
  StageOut Walk(const FlightBatch& batch) {
    StageOut out = RunInline(Job(StageKind::kStart, batch));
    while (!out.finished) {
      RunInline(Job(StageKind::kShared, batch));
      out = RunInline(Job(StageKind::kCombine, batch));
    }
    return out;
  }
  void ExpectWarmStagesToAllocateTheSampleResultsOnly() {
    Open();
    FlightBatch batch;
    Fill(&batch, 5);
    Walk(batch);
    const uint64_t before = allocations;
    Walk(batch);
    EXPECT_EQ(allocations - before, 1u);  // StageOut::samples
  }
  void ExpectAFlightToLeaveItsStateAlone() {
    EXPECT_EQ(backend_->shape().state_slots, 4u);
    std::vector<std::byte> bytes, again;
    ASSERT_TRUE(backend_->ExportState(StateId(0), &bytes).ok());
    EXPECT_EQ(bytes.size(), spec_.state_bytes());
    std::fill(bytes.begin(), bytes.end(), std::byte{0xFF});  // NaN
    for (uint32_t s = 0; s < 4; ++s) ASSERT_TRUE(backend_->ImportState(StateId(s), bytes).ok());
    FlightBatch whole;
    Fill(&whole, 18);
    whole.samples[0].top_logprobs = 20;
    const auto want = Walk(whole).samples[0].top;
    FlightBatch first;
    Fill(&first, 17);
    first.sequences[0].state_out = StateId(2);
    Walk(first);
    ASSERT_TRUE(backend_->ExportState(StateId(2), &bytes).ok());
    FlightBatch rest;
    Fill(&rest, 18);
    rest.rows.erase(rest.rows.begin(), rest.rows.begin() + 17);
    rest.sequences[0].state_in = StateId(2);
    rest.sequences[0].state_out = StateId(3);
    rest.samples[0].row = 0;
    rest.samples[0].top_logprobs = 20;
    slots_.resize(rest.rows.size() * spec_.gate.top_k);
    RunInline(Job(StageKind::kStart, rest));  // goes no further
    backend_->Abandon(FlightId(0));
    for (int i = 0; i < 2; ++i) EXPECT_EQ(Walk(rest).samples[0].top, want);
    ASSERT_TRUE(backend_->ExportState(StateId(2), &again).ok());
    EXPECT_EQ(again, bytes);
  }

  TemporaryFolder folder_;
  TinyConfig config_;
  ModelSpec spec_;
  Manifest manifest_;
  BufferPool buffers_;
  std::vector<std::byte> slot_;
  std::vector<const std::byte*> slots_;
  std::vector<KvBlockId> blocks_;
  Sampling greedy_;
  std::unique_ptr<CpuLayerBackend> backend_;
};

TEST_F(CpuLayerBackendTest, ShapeSaysWhatFramesCarry) {
  Open();
  const BackendShape& s = backend_->shape();
  EXPECT_EQ(s.layers, 3u);
  EXPECT_EQ(s.experts, 8u);
  EXPECT_EQ(s.row_bytes_in, 4 * 32u);
  EXPECT_EQ(s.row_bytes_out, 4 * 32u);
  EXPECT_EQ(s.dtype_in, 2);
  EXPECT_TRUE(s.shared_experts);
  EXPECT_EQ(backend_->kv_bytes(), 8u * 16 * (24 + 16) * 4 * 3);
}

TEST_F(CpuLayerBackendTest, StagesGoFromRoutingToSamples) {
  Open();
  FlightBatch batch;
  Fill(&batch, 5);
  StageOut out = RunInline(Job(StageKind::kStart, batch));
  for (uint16_t layer : {1, 2}) {
    ASSERT_TRUE(out.status.ok());
    EXPECT_FALSE(out.finished);
    EXPECT_EQ(out.layer, LayerId(layer));
    EXPECT_EQ(out.experts.size(), 5u * 2);
    EXPECT_EQ(out.wire_rows.size(), 5u * 4 * 32);
    EXPECT_FALSE(RunInline(Job(StageKind::kShared, batch)).finished);
    out = RunInline(Job(StageKind::kCombine, batch));
  }
  EXPECT_TRUE(out.finished);
  ASSERT_EQ(out.samples.size(), 1u);
  EXPECT_LT(out.samples[0].token, spec_.vocab);
}

// kShared says when the shared experts run; a core that never asks still gets their part.
TEST_F(CpuLayerBackendTest, CombineAddsTheSharedPartWithoutKShared) {
  Open();
  FlightBatch batch;
  Fill(&batch, 5);
  batch.samples[0].top_logprobs = 20;
  const auto walk = [&](bool shared) {
    StageOut out = RunInline(Job(StageKind::kStart, batch));
    while (!out.finished) {
      if (shared) RunInline(Job(StageKind::kShared, batch));
      out = RunInline(Job(StageKind::kCombine, batch));
    }
    return out.samples[0].top;
  };
  EXPECT_EQ(walk(true), walk(false));
}

TEST_F(CpuLayerBackendTest, RefusesTokensAndPositionsOutsideTheModel) {
  Open();
  FlightBatch batch;
  Fill(&batch, 1);
  batch.rows[0].token = 320;
  EXPECT_THAT(ToString(RunInline(Job(StageKind::kStart, batch)).status),
              HasSubstr("INVALID_ARGUMENT: token 320; expected below 320"));
  batch.rows[0] = {0, 512, 0, RowKind::kDecode};
  EXPECT_THAT(ToString(RunInline(Job(StageKind::kStart, batch)).status),
              HasSubstr("position 512; expected below 512"));
}

TEST_F(CpuLayerBackendTest, AScoredRowGivesTheLogprobOfItsTarget) {
  Open();
  FlightBatch batch;
  Fill(&batch, 3);
  batch.samples[0].score_only = true;
  batch.samples[0].target = 17;
  batch.samples[0].top_logprobs = 2;
  StageOut out = RunInline(Job(StageKind::kStart, batch));
  while (!out.finished) out = RunInline(Job(StageKind::kCombine, batch));
  EXPECT_EQ(out.samples[0].token, 17u);
  EXPECT_LT(out.samples[0].logprob, 0);
  EXPECT_EQ(out.samples[0].top.size(), 2u);
}

TEST_F(CpuLayerBackendTest, FreshBlocksAreZeroed) {
  Open();
  std::vector<std::byte> bytes;
  ASSERT_TRUE(backend_->ExportBlock(KvBlockId(3), &bytes).ok());
  std::fill(bytes.begin(), bytes.end(), std::byte{0xFF});  // NaN
  ASSERT_TRUE(backend_->ImportBlock(KvBlockId(3), bytes).ok());
  FlightBatch batch;
  Fill(&batch, 1);
  batch.fresh_blocks = {KvBlockId(3)};
  RunInline(Job(StageKind::kStart, batch));
  ASSERT_TRUE(backend_->ExportBlock(KvBlockId(3), &bytes).ok());
  EXPECT_EQ(bytes, std::vector<std::byte>(bytes.size()));
}

TEST_F(CpuLayerBackendTest, RunsWorkAndCompletionsWhereItIsTold) {
  std::deque<std::function<void()>> compute, strand;
  CpuLayerOptions options;
  options.run_compute = [&](std::function<void()> f) { compute.push_back(std::move(f)); };
  options.post_done = [&](std::function<void()> f) { strand.push_back(std::move(f)); };
  Open(options);
  FlightBatch batch;
  Fill(&batch, 2);
  int done = 0;
  backend_->Run(Job(StageKind::kStart, batch, 0), [&](StageOut) { ++done; });
  backend_->Run(Job(StageKind::kStart, batch, 1), [&](StageOut) { ++done; });
  ASSERT_EQ(compute.size(), 2u);
  EXPECT_TRUE(strand.empty());
  compute[0]();
  EXPECT_EQ(done, 0);
  ASSERT_EQ(strand.size(), 1u);
  strand[0]();
  EXPECT_EQ(done, 1);
  // Abandoned while its stage waits: it still ends once, then its slot and buffers are free.
  backend_->Abandon(FlightId(1));
  backend_->Abandon(FlightId(0));
  while (compute.size() > 1) compute[1](), compute.erase(compute.begin() + 1);
  strand[1]();
  strand.clear();
  EXPECT_EQ(done, 2);
  EXPECT_EQ(buffers_.live_buffers(), 0u);
}

TEST_F(CpuLayerBackendTest, WarmStagesAllocateTheSampleResultsOnly) {
  ExpectWarmStagesToAllocateTheSampleResultsOnly();
}

TEST_F(CpuLayerBackendTest, WarmStagesWithShortConvolutionsToo) {
  config_.family = TinyConfig::Family::kLfm2Moe;
  ExpectWarmStagesToAllocateTheSampleResultsOnly();
}

TEST_F(CpuLayerBackendTest, WarmStagesWithDeltaNetsToo) {
  config_.family = TinyConfig::Family::kQwen3Next;
  ExpectWarmStagesToAllocateTheSampleResultsOnly();
}

// A flight reads one state and writes another: it can be done again, and whatever lay in the slot is gone.
TEST_F(CpuLayerBackendTest, AFlightGoesOnFromAStateWithoutChangingIt) {
  for (const auto family : {TinyConfig::Family::kLfm2Moe, TinyConfig::Family::kQwen3Next}) {
    config_.family = family;
    Open();
    ExpectAFlightToLeaveItsStateAlone();
  }
}

TEST_F(CpuLayerBackendTest, AModelWithStatesNeedsTwoSlots) {
  config_.family = TinyConfig::Family::kQwen3Next;
  Open();
  CpuLayerOptions options;
  options.kv_blocks = options.flights = options.rows_max = options.state_slots = 1;
  const auto store = OpenFolderStore(manifest_);
  EXPECT_THAT(ToString(CpuLayerBackend::Create(spec_, manifest_, store.get(), *kernels::FindOps("auto"),
                                               nullptr, &buffers_, options)
                           .status()),
              HasSubstr("expected state_slots of at least 2, got 1"));
}

TEST_F(CpuLayerBackendTest, LayersWithAStateHaveNoPages) {
  config_.family = TinyConfig::Family::kLfm2Moe;
  Open();
  // Two layers of three convolve and keep two inputs of 32 lanes; the other one has a key and a value of 16.
  EXPECT_EQ(backend_->kv_bytes(), 8u * 16 * (16 + 16) * 4);
  EXPECT_EQ(spec_.state_bytes(), 2u * 2 * 32 * 4);
  std::vector<std::byte> bytes;
  ASSERT_TRUE(backend_->ExportBlock(KvBlockId(7), &bytes).ok());
  EXPECT_EQ(bytes.size() * 8, backend_->kv_bytes());
}

TEST(SplitCache, GivesHalfToStatesButAtLeastTwo) {
  ModelSpec spec = *ReadModelSpec(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/mixtral");
  const uint64_t page = spec.kv_page_bytes();
  EXPECT_EQ(SplitCache(spec, 4)->kv_blocks, (4u << 20) / page);
  EXPECT_EQ(SplitCache(spec, 4)->state_slots, 0u);
  spec = *ReadModelSpec(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/qwen3_next");
  const uint64_t state = spec.state_bytes();
  const CacheSplit small = *SplitCache(spec, 4);
  EXPECT_EQ(small.state_slots, (2u << 20) / state);
  EXPECT_EQ(small.kv_blocks, ((4u << 20) - small.state_slots * state) / spec.kv_page_bytes());
  // Qwen3-Next-80B: 75 MiB a state.
  spec.layers.assign(48, {});
  for (size_t i = 0; i < 36; ++i) spec.layers[i].mixer = Mixer::kDeltaNet;
  spec.delta_net.k_heads = 16, spec.delta_net.v_heads = 32;
  spec.delta_net.k_dim = spec.delta_net.v_dim = 128;
  EXPECT_EQ(spec.state_bytes(), 79'036'416u);
  EXPECT_EQ(SplitCache(spec, 8192)->state_slots, 54u);
  EXPECT_EQ(SplitCache(spec, 200)->state_slots, 2u);
  EXPECT_THAT(
      ToString(SplitCache(spec, 150).status()),
      HasSubstr("--kv-mb 150: one KV page of this model takes 98304 bytes, and its states, at least 2, "
                "79036416 bytes each"));
}

}  // namespace
}  // namespace consilium
