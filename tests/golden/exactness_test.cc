// One promise of the numerics class: the bits of a logit depend on the tokens before it only. Not on
// chunking, on who else is in the batch, on pages, threads, instruction set, or on flights that overlap.
#include <gtest/gtest.h>

#include <cstring>

#include "common/base/hash.h"
#include "common/base/status.h"
#include "common/testing/tiny_checkpoint.h"
#include "services/cli/local_decoder.h"
#include "tests/golden/tiny_cases.h"

namespace consilium {
namespace {

constexpr size_t kTokens = 75;  // beyond a fold of 64 keys, not a multiple of a page

class Exactness : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    dir_ = std::string(CONSILIUM_SOURCE_DIR) + "/models/demo";
    if (GetParam().golden != nullptr) {
      dir_ = std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + GetParam().golden;
    } else if (!GetParam().demo) {
      dir_ = folder_.path() + "/model";
      const auto status = WriteTinyCheckpoint(GetParam().config, dir_);
      ASSERT_TRUE(status.ok()) << ToString(status);
    }
    base_ = Open();
    tokens_ = Tokens(1, kTokens);
    expected_ = base_->Prefill(base_->AddSequence(kTokens), tokens_, kTokens).value();
    for (float v : expected_) ASSERT_TRUE(std::isfinite(v));
  }
  std::unique_ptr<LocalDecoder> Open(LocalDecoderOptions options = {}) {
    options.numerics = GetParam().numerics;
    auto decoder = LocalDecoder::Open(dir_, std::move(options));
    CHECK_MSG(decoder.ok(), ToString(decoder.status()));
    return *std::move(decoder);
  }
  std::vector<TokenId> Tokens(uint64_t seed, size_t n) {
    std::vector<TokenId> out;
    for (size_t i = 0; i < n; ++i) out.push_back(static_cast<TokenId>(Mix(seed, i) % base_->spec().vocab));
    return out;
  }
  void ExpectSame(const std::vector<float>& got, const std::string& what) {
    ExpectSameAs(expected_, got, what);
  }
  void ExpectSameAs(const std::vector<float>& want, const std::vector<float>& got, const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::memcmp(&got[i], &want[i], sizeof(float)) == 0) continue;
      const size_t vocab = base_->spec().vocab;
      FAIL() << what << ": position " << i / vocab << " token " << i % vocab << ": expected " << want[i]
             << ", got " << got[i];
    }
  }
  // Logits of `sequence` for positions 0..n-1.
  std::vector<float> All(const LocalDecoder& d, uint32_t sequence, size_t n) {
    std::vector<float> out;
    for (Position p = 0; p < n; ++p) {
      const auto& row = d.logits(sequence, p);
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }

  TemporaryFolder folder_;
  std::string dir_;
  std::unique_ptr<LocalDecoder> base_;
  std::vector<TokenId> tokens_;
  std::vector<float> expected_;
};

TEST_P(Exactness, ChunksOfAPromptGiveTheSameBits) {
  for (size_t chunk : {1, 7, 16}) {
    const auto d = Open();
    ExpectSame(d->Prefill(d->AddSequence(kTokens), tokens_, chunk).value(), "chunk " + std::to_string(chunk));
  }
}

TEST_P(Exactness, EveryTableAndThreadCountGivesTheSameBits) {
  for (const std::string_view ops : kernels::AvailableOps()) {
    for (uint32_t threads : {1u, 2u, 3u}) {
      LocalDecoderOptions options;
      options.ops = ops;
      options.threads = threads;
      const auto d = Open(options);
      ExpectSame(d->Prefill(d->AddSequence(kTokens), tokens_, kTokens).value(),
                 std::string(ops) + ", threads " + std::to_string(threads));
    }
  }
}

TEST_P(Exactness, NeighboursInTheBatchChangeNothing) {
  LocalDecoderOptions options;
  options.threads = 2;
  options.kv_blocks = 128;
  const auto d = Open(options);
  // Sequence 1 is ours; 0, 2 and 3 are others of other lengths, mixed prompt and decode rows.
  for (int i = 0; i < 4; ++i) d->AddSequence(kTokens);
  const auto other = Tokens(2, 200);
  size_t mine = 0;
  for (size_t step = 0; mine < kTokens; ++step) {
    const size_t n = std::min<size_t>(kTokens - mine, 1 + step * 5 % 13);
    std::vector<Feed> feeds;
    feeds.push_back(
        {0, {other.begin() + static_cast<long>(step), other.begin() + static_cast<long>(step) + 1}, true});
    feeds.push_back(
        {1,
         {tokens_.begin() + static_cast<long>(mine), tokens_.begin() + static_cast<long>(mine + n)},
         true});
    if (step % 2 == 0)
      feeds.push_back({2, {other.begin() + 7, other.begin() + 7 + static_cast<long>(1 + step)}, false});
    feeds.push_back({3, {other.begin() + 50, other.begin() + 53}, true});
    if (step % 3 == 0) std::swap(feeds[0], feeds[1]);
    ASSERT_TRUE(d->Step(feeds).ok());
    mine += n;
  }
  ExpectSame(All(*d, 1, kTokens), "among neighbours");
}

TEST_P(Exactness, OverlappingFlightsChangeNothing) {
  LocalDecoderOptions options;
  options.flights = 2;
  options.threads = 2;
  const auto d = Open(options);
  const uint32_t a = d->AddSequence(kTokens), b = d->AddSequence(kTokens);
  const auto other = Tokens(3, 40);
  const auto first = d->Begin(0, {Feed{a, tokens_, true}}).value();
  const auto second = d->Begin(1, {Feed{b, other, true}}).value();
  bool more = true;
  while (more) {
    const bool one = d->Advance(second.get()).value(), two = d->Advance(first.get()).value();
    more = one || two;
  }
  ExpectSame(All(*d, a, kTokens), "overlapping flights");
  ExpectSameAs(base_->Prefill(base_->AddSequence(kTokens), other, other.size()).value(),
               All(*d, b, other.size()), "the other flight");
}

// Pages, and the state after them, that go to another backend carry all that later tokens need.
TEST_P(Exactness, ExportedBlocksContinueElsewhere) {
  const auto from = Open(), to = Open();
  const uint32_t a = from->AddSequence(kTokens), b = to->AddSequence(kTokens);
  const std::span<const TokenId> all(tokens_);
  ASSERT_TRUE(from->Prefill(a, all.first(64), 64).ok());
  ASSERT_TRUE(to->Prefill(b, Tokens(9, 64), 64).ok());  // reserves blocks and fills them with something else
  for (size_t i = 0; i < 4; ++i) {
    std::vector<std::byte> bytes;
    ASSERT_TRUE(from->layers().ExportBlock(from->blocks(a)[i], &bytes).ok());
    ASSERT_TRUE(to->layers().ImportBlock(to->blocks(b)[i], bytes).ok());
  }
  if (from->state(a)) {
    std::vector<std::byte> bytes;
    ASSERT_TRUE(from->layers().ExportState(*from->state(a), &bytes).ok());
    ASSERT_TRUE(to->layers().ImportState(*to->state(b), bytes).ok());
  }
  for (LocalDecoder* d : {from.get(), to.get()})
    ASSERT_TRUE(d->Step({Feed{d == from.get() ? a : b, {tokens_.begin() + 64, tokens_.end()}, true}}).ok());
  for (Position p = 64; p < kTokens; ++p)
    ExpectSameAs(from->logits(a, p), to->logits(b, p), "position " + std::to_string(p));
  EXPECT_FALSE(to->layers().ImportBlock(KvBlockId(0), std::span<const std::byte>()).ok());
  std::vector<std::byte> none;
  EXPECT_FALSE(to->layers().ExportBlock(KvBlockId(9999), &none).ok());
  EXPECT_FALSE(to->layers().ImportState(StateId(0), std::span<const std::byte>()).ok());
  EXPECT_FALSE(to->layers().ExportState(StateId(9999), &none).ok());
}

INSTANTIATE_TEST_SUITE_P(All, Exactness, ::testing::ValuesIn(ExactCases()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace consilium
