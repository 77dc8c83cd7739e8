#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/api/test_support.h"

namespace consilium::kernels {
namespace {

struct Choice {
  std::vector<uint16_t> ids;
  std::vector<float> weights;
};

Choice Route(const GateSpec& gate, const std::vector<float>& logits, const float* bias = nullptr) {
  Choice c;
  c.ids.resize(gate.top_k);
  c.weights.resize(gate.top_k);
  std::vector<float> scratch(2 * gate.experts);
  RouteRow(gate, logits.data(), bias, c.ids.data(), c.weights.data(), scratch.data());
  return c;
}

GateSpec Softmax(uint32_t experts, uint32_t top_k, bool renormalize) {
  GateSpec g;
  g.experts = experts;
  g.top_k = top_k;
  g.renormalize = renormalize;
  return g;
}

GateSpec DeepSeek(uint32_t experts, uint32_t top_k, uint32_t groups, uint32_t kept) {
  GateSpec g;
  g.experts = experts;
  g.top_k = top_k;
  g.score = GateSpec::Score::kSigmoid;
  g.has_bias = true;
  g.groups = groups;
  g.groups_kept = kept;
  g.renormalize = true;
  g.renormalize_epsilon = 1e-20f;
  g.scale = 2.5f;
  return g;
}

TEST(Route, SoftmaxOverAllThenTopK) {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 1.0f};
  double sum = 0;
  for (float l : logits) sum += std::exp(static_cast<double>(l));
  const Choice raw = Route(Softmax(4, 2, false), logits);
  EXPECT_EQ(raw.ids, (std::vector<uint16_t>{1, 3}));
  EXPECT_NEAR(raw.weights[0], std::exp(2.0) / sum, 1e-7);
  EXPECT_NEAR(raw.weights[1], std::exp(1.0) / sum, 1e-7);
  const Choice normal = Route(Softmax(4, 2, true), logits);
  EXPECT_NEAR(normal.weights[0] + normal.weights[1], 1.0, 2e-7);
}

TEST(Route, TiesGoToTheLowestId) {
  const Choice c = Route(Softmax(20, 3, true), std::vector<float>(20, 0.25f));
  EXPECT_EQ(c.ids, (std::vector<uint16_t>{0, 1, 2}));
}

TEST(Route, TheBiasChoosesButNeverWeighs) {
  GateSpec g = DeepSeek(4, 1, 1, 1);
  g.renormalize = false;
  g.scale = 1.0f;
  const std::vector<float> logits = {3, 0, 1, 2}, bias = {-1, 1, 0, 0};
  const Choice c = Route(g, logits, bias.data());
  EXPECT_EQ(c.ids[0], 1);
  EXPECT_EQ(c.weights[0], 0.5f);  // sigmoid(0), without the bias
}

TEST(Route, AGroupIsScoredByItsTwoBestAndOthersAreMaskedWithMinusInfinity) {
  // Biases so negative that every biased score is below 0: a mask of 0 instead of -inf would choose wrongly.
  const std::vector<float> bias(8, -5.0f);
  // Groups of two: sums 0.9+0.1, 0.6+0.6 (best), 0.7+0.2, 0.5+0.6 (second).
  const auto logit = [](double p) { return static_cast<float>(std::log(p / (1 - p))); };
  const std::vector<float> logits = {logit(0.9), logit(0.1), logit(0.6), logit(0.61),
                                     logit(0.7), logit(0.2), logit(0.5), logit(0.62)};
  const Choice c = Route(DeepSeek(8, 3, 4, 2), logits, bias.data());
  EXPECT_EQ(c.ids, (std::vector<uint16_t>{7, 3, 2}));
  EXPECT_NEAR(c.weights[0] + c.weights[1] + c.weights[2], 2.5, 1e-6);
  EXPECT_NEAR(c.weights[0], 2.5 * 0.62 / (0.62 + 0.61 + 0.6), 1e-6);
}

TEST(Route, AgreesWithAPlainModelInDoubleOnRandomRows) {
  const GateSpec g = DeepSeek(64, 8, 8, 4);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> logits = TestFloats(64, seed);
    std::vector<float> bias = TestFloats(64, seed + 1000);
    for (float& b : bias) b = std::min(1.0f, std::max(-1.0f, b));
    std::vector<double> score(64), choice(64), group(8);
    for (int e = 0; e < 64; ++e)
      score[e] = 1 / (1 + std::exp(-static_cast<double>(logits[e]))), choice[e] = score[e] + bias[e];
    for (int i = 0; i < 8; ++i) {
      std::vector<double> m(choice.begin() + 8 * i, choice.begin() + 8 * i + 8);
      std::sort(m.rbegin(), m.rend());
      group[i] = m[0] + m[1];
    }
    std::vector<int> order(8), ids;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return group[a] > group[b]; });
    for (int i = 0; i < 4; ++i) {
      for (int e = 8 * order[i]; e < 8 * order[i] + 8; ++e) ids.push_back(e);
    }
    std::sort(ids.begin(), ids.end(), [&](int a, int b) { return choice[a] > choice[b]; });
    double sum = 0;
    for (int s = 0; s < 8; ++s) sum += score[ids[s]];
    const Choice c = Route(g, logits, bias.data());
    for (int s = 0; s < 8; ++s) {
      // Scores that f32 cannot tell apart may change places.
      EXPECT_NEAR(choice[c.ids[s]], choice[ids[s]], 3e-7) << "seed " << seed << " slot " << s;
      EXPECT_NEAR(c.weights[s], 2.5 * score[c.ids[s]] / sum, 3e-6) << "seed " << seed;
    }
  }
}

TEST(Route, SoftmaxOverTheChosenLogits) {
  GateSpec g = Softmax(4, 2, false);
  g.score = GateSpec::Score::kSoftmaxChosen;
  const Choice c = Route(g, {0.5f, 2.0f, -1.0f, 1.0f});
  EXPECT_EQ(c.ids, (std::vector<uint16_t>{1, 3}));
  EXPECT_NEAR(c.weights[0], 1 / (1 + std::exp(-1.0)), 1e-7);
  EXPECT_NEAR(c.weights[1], 1 / (1 + std::exp(1.0)), 1e-7);
}

TEST(Route, TheLargestLogitWinsEvenWhereSigmoidsAreEqual) {
  GateSpec g = Softmax(3, 1, false);
  g.score = GateSpec::Score::kSigmoidOfLogit;
  const Choice c = Route(g, {40.0f, 50.0f, -2.0f});
  EXPECT_EQ(c.ids[0], 1);
  EXPECT_EQ(c.weights[0], 1.0f);
  EXPECT_NEAR(Route(g, {-3.0f, -2.0f, -4.0f}).weights[0], 1 / (1 + std::exp(2.0)), 1e-7);
}

// Hand-made: eps 0.1 keeps logits within 20 % of the best (by the larger magnitude of the two).
TEST(Route, SparsemixerWeighsEachChoiceAmongItsNeighbours) {
  GateSpec g = Softmax(5, 2, false);
  g.score = GateSpec::Score::kSparsemixer;
  g.jitter = 0.1f;
  const Choice c = Route(g, {2.0f, 1.7f, 1.0f, -4.0f, 1.5f});
  EXPECT_EQ(c.ids, (std::vector<uint16_t>{0, 1}));
  EXPECT_NEAR(c.weights[0], 1 / (1 + std::exp(-0.3)), 1e-6);  // 2.0 and 1.7
  EXPECT_NEAR(c.weights[1], 1 / (1 + std::exp(-0.2)), 1e-6);  // 1.7 and 1.5; 0 is taken
}

TEST(Route, AGroupMayBeScoredByItsBestAlone) {
  GateSpec g = Softmax(6, 2, false);
  g.groups = 3;
  g.groups_kept = 1;
  g.group_max = true;
  EXPECT_EQ(Route(g, {1, 1, 2, -9, 1.5f, 1.5f}).ids, (std::vector<uint16_t>{2, 3}));
  g.group_max = false;
  EXPECT_EQ(Route(g, {1, 1, 2, -9, 1.9f, 1.9f}).ids, (std::vector<uint16_t>{4, 5}));
}

TEST(Route, WeightsCanBeDividedByANormOrAMinimum) {
  GateSpec g = Softmax(4, 2, true);
  g.renormalize_norm = 2;
  const Choice c = Route(g, {0.5f, 2.0f, -1.0f, 1.0f});
  EXPECT_NEAR(c.weights[0] * c.weights[0] + c.weights[1] * c.weights[1], 1.0, 2e-7);
  EXPECT_NEAR(c.weights[0] / c.weights[1], std::exp(1.0), 1e-6);
  g.renormalize_norm = 1;
  g.renormalize_min = 10.0f;
  const Choice raw = Route(Softmax(4, 2, false), {0.5f, 2.0f, -1.0f, 1.0f});
  EXPECT_NEAR(Route(g, {0.5f, 2.0f, -1.0f, 1.0f}).weights[0], raw.weights[0] / 10, 1e-8);
}

TEST(QueryFactor, GrowsWithTheLogarithmOfWholeSteps) {
  EXPECT_EQ(QueryFactor(0.1f, 8, 1, 6), 1.0f);
  EXPECT_NEAR(QueryFactor(0.1f, 8, 1, 7), 1 + 0.1 * std::log(2), 1e-7);
  EXPECT_NEAR(QueryFactor(0.1f, 8192, 0, 1000000), 1 + 0.1 * std::log(1 + 122), 1e-7);
}

TEST(Route, AllExpertsCanBeChosen) {
  const Choice c = Route(Softmax(5, 5, true), {1, 5, 3, 2, 4});
  EXPECT_EQ(c.ids, (std::vector<uint16_t>{1, 4, 2, 3, 0}));
}

}  // namespace
}  // namespace consilium::kernels
