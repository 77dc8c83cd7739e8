#include "services/attention/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "common/base/philox.h"
#include "kernels/api/numerics.h"

namespace consilium {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomLogits(size_t n, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> v(n);
  for (float& x : v) x = std::round(normal(rng) * 16) / 16;  // coarse: many ties
  return v;
}

struct Call {
  explicit Call(std::vector<float> l) : logits(std::move(l)) {}
  std::vector<float> logits;
  Sampling sampling;
  std::vector<TokenId> prompt, generated, banned;
  int top_logprobs = -1;
  SampleKey key;
  SampleResult Run(SampleScratch* scratch = nullptr) const {
    SampleScratch own;
    return Sample(logits, sampling, prompt, generated, banned, top_logprobs, key,
                  scratch != nullptr ? scratch : &own);
  }
};

TEST(Sampler, TemperatureZeroIsTheArgmaxWithTiesToTheLowestId) {
  Call c{std::vector<float>{1, 5, 2, 5, 5}};
  c.sampling.temperature = 0;
  EXPECT_EQ(c.Run().token, 1u);
  c.banned = {1};
  EXPECT_EQ(c.Run().token, 3u);
}

TEST(Sampler, TopKOfOneIsGreedyAtAnyTemperature) {
  Call c{RandomLogits(1000, 1)};
  c.sampling.top_k = 1;
  c.sampling.temperature = 50;
  const TokenId best =
      static_cast<TokenId>(std::max_element(c.logits.begin(), c.logits.end()) - c.logits.begin());
  for (c.key.position = 0; c.key.position < 20; ++c.key.position) EXPECT_EQ(c.Run().token, best);
}

TEST(Sampler, TheSameKeyGivesTheSameTokenAndAnotherKeyAnotherStream) {
  Call c{RandomLogits(500, 2)};
  SampleScratch scratch;
  std::vector<TokenId> a, b, other_seed, other_choice;
  for (uint32_t p = 0; p < 64; ++p) {
    c.key = {7, 0, p};
    a.push_back(c.Run().token);
    b.push_back(c.Run(&scratch).token);
    c.key = {8, 0, p};
    other_seed.push_back(c.Run().token);
    c.key = {7, 1, p};
    other_choice.push_back(c.Run().token);
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, other_seed);
  EXPECT_NE(a, other_choice);
  EXPECT_NE(other_seed, other_choice);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  Call c{std::vector<float>{0.0f, 1.0f, 2.0f, -1.0f}};
  c.sampling.temperature = 0.7;
  std::vector<double> p(4);
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += p[i] = std::exp(c.logits[i] / 0.7);
  std::vector<int> count(4);
  constexpr int kDraws = 40000;
  for (uint32_t i = 0; i < kDraws; ++i) {
    c.key = {99, 0, i};
    ++count[c.Run().token];
  }
  for (int i = 0; i < 4; ++i) {
    const double want = p[i] / sum;
    EXPECT_NEAR(count[i] / double{kDraws}, want, 5 * std::sqrt(want * (1 - want) / kDraws)) << i;
  }
}

// The tokens that can come out, over many draws.
std::set<TokenId> Support(Call c, int draws = 3000) {
  std::set<TokenId> seen;
  for (int i = 0; i < draws; ++i) {
    c.key = {5, 0, static_cast<uint32_t>(i)};
    seen.insert(c.Run().token);
  }
  return seen;
}

TEST(Sampler, TopPKeepsTheSmallestPrefixThatReachesIt) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  Call c{std::vector<float>{std::log(0.125f), std::log(0.5f), std::log(0.25f), std::log(0.125f)}};
  c.sampling.top_p = 0.49;
  EXPECT_EQ(Support(c), (std::set<TokenId>{1}));
  c.sampling.top_p = 0.6;
  EXPECT_EQ(Support(c), (std::set<TokenId>{1, 2}));
  c.sampling.top_p = 0.8;
  EXPECT_EQ(Support(c), (std::set<TokenId>{0, 1, 2}));  // of equals, the lower id
  c.sampling.top_p = 1.0;
  EXPECT_EQ(Support(c).size(), 4u);
  c.sampling.top_p = 0.0;
  EXPECT_EQ(Support(c), (std::set<TokenId>{1}));
}

TEST(Sampler, TopPCountsTheMassOfWhatTopKLeft) {
  Call c{std::vector<float>{std::log(0.4f), std::log(0.3f), std::log(0.3f)}};
  c.sampling.top_k = 2;
  c.sampling.top_p = 0.5;  // 0.4 / 0.7 = 0.57 reaches it
  EXPECT_EQ(Support(c), (std::set<TokenId>{0}));
}

TEST(Sampler, MinPKeepsWhatIsLikelyEnoughBesideTheBest) {
  Call c{std::vector<float>{std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)}};
  c.sampling.min_p = 0.2;
  EXPECT_EQ(Support(c), (std::set<TokenId>{0, 1, 2}));
  c.sampling.min_p = 1.0;
  EXPECT_EQ(Support(c), (std::set<TokenId>{0}));
}

TEST(Sampler, PenaltiesFollowTheRulesOfTheField) {
  Call c{std::vector<float>{4.0f, 4.0f, -2.0f, 3.0f}};
  c.sampling.temperature = 0;
  c.sampling.repetition_penalty = 2;
  c.prompt = {0, 0};
  EXPECT_EQ(c.Run().token, 1u);  // 0 is halved once
  c.generated = {1};
  EXPECT_EQ(c.Run().token, 3u);
  c.sampling.repetition_penalty = 1;
  c.sampling.presence_penalty = 0.5;
  c.generated = {0, 0, 0};
  EXPECT_EQ(c.Run().token, 1u);  // presence counts once; the prompt does not count
  c.sampling.presence_penalty = 0;
  c.sampling.frequency_penalty = 0.4;
  c.generated = {0, 0, 0, 1};
  EXPECT_EQ(c.Run().token, 1u);  // 4 - 1.2 against 4 - 0.4
  c.logits = {-1.0f, -1.5f};
  c.sampling = {};
  c.sampling.temperature = 0;
  c.sampling.repetition_penalty = 2;
  c.generated = {0};
  EXPECT_EQ(c.Run().token, 1u);  // a negative logit is multiplied
}

TEST(Sampler, ScratchIsCleanAfterPenalties) {
  Call c{RandomLogits(50, 3)};
  c.sampling.repetition_penalty = 1.3;
  c.sampling.frequency_penalty = 0.2;
  c.prompt = {1, 2, 3, 3};
  c.generated = {3, 4, 4, 49, 1000};
  SampleScratch scratch;
  c.Run(&scratch);
  EXPECT_EQ(std::accumulate(scratch.counts.begin(), scratch.counts.end(), uint64_t{0}), 0u);
}

TEST(Sampler, LogitBiasAndBansActOnTheChoiceButNotOnLogprobs) {
  Call c{std::vector<float>{1, 2, 3}};
  c.sampling.temperature = 0;
  c.top_logprobs = 3;
  const SampleResult plain = c.Run();
  c.sampling.logit_bias = {{0, 100.0f}, {77, 1.0f}};
  const SampleResult biased = c.Run();
  EXPECT_EQ(biased.token, 0u);
  EXPECT_EQ(biased.top, plain.top);
  EXPECT_EQ(biased.logprob, plain.top[2].logprob);
  c.banned = {0, 1, 99};
  EXPECT_EQ(c.Run().token, 2u);
}

TEST(Sampler, LogprobsAreTheLogSoftmaxOfTheRawLogits) {
  Call c{RandomLogits(2000, 4)};
  c.sampling.temperature = 0.3;
  c.top_logprobs = 20;
  const SampleResult r = c.Run();
  long double sum = 0;
  for (float x : c.logits) sum += std::exp(static_cast<long double>(x));
  ASSERT_EQ(r.top.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_NEAR(r.top[i].logprob, c.logits[r.top[i].id] - static_cast<double>(std::log(sum)), 1e-6);
    if (i > 0) {
      const auto &a = r.top[i - 1], &b = r.top[i];
      EXPECT_TRUE(a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id));
    }
  }
  const SampleResult scored = ScoreToken(c.logits, r.token, 20);
  EXPECT_EQ(scored.logprob, r.logprob);
  EXPECT_EQ(scored.top, r.top);
  c.top_logprobs = 0;
  EXPECT_EQ(c.Run().logprob, r.logprob);
  EXPECT_TRUE(c.Run().top.empty());
}

// The definition written out: everything sorted, nothing clever.
TokenId Plain(const Call& c) {
  std::vector<TokenId> order(c.logits.size());
  std::iota(order.begin(), order.end(), TokenId{0});
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return c.logits[a] != c.logits[b] ? c.logits[a] > c.logits[b] : a < b;
  });
  if (c.sampling.top_k > 0 && c.sampling.top_k < order.size()) order.resize(c.sampling.top_k);
  const double max = c.logits[order[0]];
  const auto weight = [&](TokenId t) { return numerics::Exp((c.logits[t] - max) / c.sampling.temperature); };
  std::vector<TokenId> by_id = order;
  std::sort(by_id.begin(), by_id.end());
  double total = 0;
  for (TokenId t : by_id) total += weight(t);
  double mass = total;
  if (c.sampling.top_p < 1 || c.sampling.min_p > 0) {
    mass = 0;
    size_t kept = 0;
    for (TokenId t : order) {
      if (kept > 0 && (mass >= c.sampling.top_p * total || weight(t) < c.sampling.min_p)) break;
      mass += weight(t);
      ++kept;
    }
    order.resize(kept);
  }
  const double target = PhiloxUniform(c.key.seed, c.key.choice, c.key.position) * mass;
  double sum = 0;
  for (TokenId t : order) {
    sum += weight(t);
    if (sum > target) return t;
  }
  return order.back();
}

TEST(SamplerProperty, EqualsTheDefinitionWhateverIsSortedLazily) {
  std::mt19937_64 rng(11);
  SampleScratch scratch;
  for (int i = 0; i < 600; ++i) {
    Call c{RandomLogits(1 + rng() % 3000, rng())};
    c.sampling.temperature = 0.2 + static_cast<double>(rng() % 30) * 0.1;
    if (rng() % 2 == 0) c.sampling.top_p = static_cast<double>(rng() % 1000) / 999;
    if (rng() % 2 == 0) c.sampling.top_k = static_cast<uint32_t>(rng() % 200);
    if (rng() % 3 == 0) c.sampling.min_p = static_cast<double>(rng() % 100) / 100;
    c.key = {rng(), static_cast<uint32_t>(rng()), static_cast<uint32_t>(rng())};
    ASSERT_EQ(c.Run(&scratch).token, Plain(c)) << "case " << i;
  }
}

TEST(SamplerProperty, AddingTheSameToEveryLogitOrPermutingBannedIdsChangesNothing) {
  std::mt19937_64 rng(12);
  for (int i = 0; i < 100; ++i) {
    Call c{RandomLogits(300, rng())};
    c.banned = {3, 9, 200};
    c.key = {rng(), 0, 1};
    const TokenId token = c.Run().token;
    c.banned = {200, 3, 9, 3};
    for (float& x : c.logits) x += 8.0f;  // exact: the logits are multiples of 1/16
    EXPECT_EQ(c.Run().token, token);
  }
}

TEST(SamplerEdges, NanAndInfinitiesNeverCrashAndAreNeverChosenWrongly) {
  Call c{std::vector<float>{kNan, 1.0f, kNan, -kInf}};
  c.top_logprobs = 4;
  for (c.key.position = 0; c.key.position < 50; ++c.key.position) {
    const SampleResult r = c.Run();
    EXPECT_EQ(r.token, 1u);
    EXPECT_EQ(r.logprob, 0.0f);
    EXPECT_EQ(r.top.front().id, 1u);
  }
  c.logits = {0.0f, kInf, kInf, 5.0f};
  std::map<TokenId, int> seen;
  for (c.key.position = 0; c.key.position < 200; ++c.key.position) ++seen[c.Run().token];
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_GT(seen[1], 50);
  EXPECT_GT(seen[2], 50);
  c.logits = {kNan, kNan};
  EXPECT_EQ(c.Run().token, 0u);
  c.banned = {0};
  EXPECT_EQ(c.Run().token, 1u);
  c.banned = {0, 1};
  EXPECT_EQ(c.Run().token, 0u);
}

TEST(SamplerEdges, ExtremeOptionsStayInRange) {
  Call c{RandomLogits(64, 5)};
  const double huge = std::numeric_limits<double>::max(), inf = std::numeric_limits<double>::infinity();
  for (double temperature : {5e-324, 1e-30, 1e30, huge, inf, -1.0, std::nan("")}) {
    for (double top_p : {-1.0, 0.0, 5e-324, 1.0, 2.0, std::nan("")}) {
      for (double min_p : {0.0, 1.0, 5.0, std::nan("")}) {
        for (uint32_t top_k : {0u, 1u, 63u, 64u, 65u, 0xFFFFFFFFu}) {
          c.sampling.temperature = temperature;
          c.sampling.top_p = top_p;
          c.sampling.min_p = min_p;
          c.sampling.top_k = top_k;
          EXPECT_LT(c.Run().token, 64u);
        }
      }
    }
  }
  EXPECT_EQ(Sample({}, {}, {}, {}, {}, 5, {}, nullptr).token, 0u);
  c = Call(std::vector<float>{2.0f});
  c.top_logprobs = 20;
  EXPECT_EQ(c.Run().top.size(), 1u);
  EXPECT_EQ(c.Run().logprob, 0.0f);
}

TEST(SamplerEdges, AVanishingTemperatureIsGreedy) {
  Call c{std::vector<float>{1.0f, 1.5f, 1.25f}};
  c.sampling.temperature = 1e-300;
  for (c.key.position = 0; c.key.position < 50; ++c.key.position) EXPECT_EQ(c.Run().token, 1u);
}

}  // namespace
}  // namespace consilium
