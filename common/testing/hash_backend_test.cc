#include "common/testing/hash_backend.h"

#include <gtest/gtest.h>

#include <cstring>

#include "common/base/limits.h"

namespace consilium {
namespace {

// Runs one sequence's rows through all layers with every expert at hand; gives the sample of the last row.
struct Runner {
  HashModel model;
  BufferPool pool;
  HashLayerBackend backend{model, &pool};
  std::vector<KvBlockId> blocks;
  Sampling sampling;
  bool zero = true;
  bool swap_slots = false;

  SampleResult Run(const std::vector<TokenId>& tokens, Position first, std::vector<KvBlockId> fresh) {
    FlightBatch batch;
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.rows.push_back({tokens[i], first + static_cast<Position>(i), 0, RowKind::kPrompt});
    }
    batch.sequences.push_back({blocks});
    if (zero) batch.fresh_blocks = std::move(fresh);
    SampleRow sample;
    sample.row = static_cast<uint32_t>(tokens.size() - 1);
    sample.sampling = &sampling;
    sample.top_logprobs = 2;
    sample.key = {sampling.seed, 0, first + static_cast<Position>(tokens.size())};
    batch.samples.push_back(sample);
    StageJob job{FlightId(0), StageKind::kStart, &batch, {}};
    StageOut out;
    auto run = [&] { backend.Run(job, [&](StageOut o) { out = std::move(o); }); };
    run();
    while (!out.finished) {
      std::vector<uint64_t> values(out.experts.size());
      std::vector<const std::byte*> slots(values.size());
      for (size_t i = 0; i < values.size(); ++i) {
        uint64_t x;
        std::memcpy(&x, out.wire_rows.data() + i / model.top_k * 8, 8);
        values[i] = HashExpert(out.layer, ExpertId(out.experts[i]), x);
        slots[i] = reinterpret_cast<const std::byte*>(&values[i]);
      }
      if (swap_slots) std::swap(slots[0], slots[1]);
      job.kind = StageKind::kShared;
      run();
      job.kind = StageKind::kCombine;
      job.slot_outputs = slots;
      run();
    }
    return out.samples.at(0);
  }
};

std::vector<TokenId> Tokens(size_t n) {
  std::vector<TokenId> t(n);
  for (size_t i = 0; i < n; ++i) t[i] = static_cast<TokenId>(i * 7 + 3);
  return t;
}
std::vector<KvBlockId> Blocks(std::initializer_list<uint32_t> ids) {
  std::vector<KvBlockId> out;
  for (uint32_t id : ids) out.push_back(KvBlockId(id));
  return out;
}

TEST(HashBackend, ChunksAndPagesDoNotChangeTheToken) {
  Runner whole, parts;
  whole.blocks = Blocks({0, 1});
  parts.blocks = Blocks({9, 5});
  const auto tokens = Tokens(20);
  const SampleResult a = whole.Run(tokens, 0, whole.blocks);
  parts.Run({tokens.begin(), tokens.begin() + 7}, 0, Blocks({9}));
  const SampleResult b = parts.Run({tokens.begin() + 7, tokens.end()}, 7, Blocks({5}));
  EXPECT_EQ(a.token, b.token);
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(whole.backend.live_flights(), 0u);
}

TEST(HashBackend, AWrongPageChangesTheToken) {
  Runner right, wrong;
  const auto tokens = Tokens(20);
  for (Runner* r : {&right, &wrong}) {
    r->blocks = Blocks({0, 1});
    r->Run({tokens.begin(), tokens.begin() + 19}, 0, r->blocks);
  }
  wrong.blocks = Blocks({1, 0});
  EXPECT_NE(right.Run({tokens[19]}, 19, {}).logprob, wrong.Run({tokens[19]}, 19, {}).logprob);
}

TEST(HashBackend, APageThatWasNotZeroedChangesTheToken) {
  Runner right, wrong;
  wrong.zero = false;
  right.blocks = wrong.blocks = Blocks({3});
  EXPECT_NE(right.Run(Tokens(4), 0, right.blocks).logprob, wrong.Run(Tokens(4), 0, wrong.blocks).logprob);
}

TEST(HashBackend, SwappedSlotsChangeTheToken) {
  Runner right, wrong;
  wrong.swap_slots = true;
  right.blocks = wrong.blocks = Blocks({0});
  EXPECT_NE(right.Run(Tokens(3), 0, right.blocks).logprob, wrong.Run(Tokens(3), 0, wrong.blocks).logprob);
}

TEST(HashBackend, SeedAndPenaltiesChangeTheTokenButGreedyIgnoresTheSeed) {
  auto token = [](float temperature, uint64_t seed) {
    Runner r;
    r.sampling.temperature = temperature;
    r.sampling.seed = seed;
    r.blocks = Blocks({0});
    return r.Run(Tokens(3), 0, r.blocks).token;
  };
  EXPECT_EQ(token(0, 1), token(0, 2));
  EXPECT_NE(token(1, 1), token(1, 2));
}

TEST(HashBackend, AnExportedPageWorksElsewhere) {
  Runner a, b;
  const auto tokens = Tokens(17);
  a.blocks = Blocks({2, 3});
  b.blocks = Blocks({7, 8});
  const SampleResult want = a.Run(tokens, 0, a.blocks);
  std::vector<std::byte> bytes;
  ASSERT_TRUE(a.backend.ExportBlock(KvBlockId(2), &bytes).ok());
  ASSERT_TRUE(b.backend.ImportBlock(KvBlockId(7), bytes).ok());
  EXPECT_EQ(b.Run({tokens[16]}, 16, Blocks({8})).logprob, want.logprob);
  EXPECT_FALSE(b.backend.ImportBlock(KvBlockId(7), std::span<const std::byte>(bytes).first(8)).ok());
  EXPECT_FALSE(a.backend.ExportBlock(KvBlockId(64), &bytes).ok());
}

TEST(HashBackend, ExpertsDependOnLayerExpertAndRow) {
  EXPECT_NE(HashExpert(LayerId(1), ExpertId(2), 3), HashExpert(LayerId(2), ExpertId(1), 3));
  EXPECT_NE(HashExpert(LayerId(1), ExpertId(2), 3), HashExpert(LayerId(1), ExpertId(2), 4));
}

}  // namespace
}  // namespace consilium
