#include "kernels/api/numerics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace consilium::numerics {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Distance of `got` from the true value in units of the last place of a float of that size.
double UlpsF(float got, double want) {
  const double ulp = std::ldexp(1.0, std::max(-149, std::ilogb(want) - 23));
  return std::abs(static_cast<double>(got) - want) / ulp;
}

TEST(ExpF, IsWithinTwoUlpsOverItsWholeRange) {
  double worst = 0;
  float at = 0;
  for (float x = -87.0f; x <= 88.7228f; x += 0.000173f) {
    const double e = UlpsF(Exp(x), std::exp(static_cast<double>(x)));
    if (e > worst) worst = e, at = x;
  }
  EXPECT_LE(worst, 2.0) << "at " << at;
  RecordProperty("worst_ulps", std::to_string(worst));
}

TEST(ExpF, EndsAreExactAndMonotone) {
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  EXPECT_EQ(Exp(-kInf), 0.0f);
  EXPECT_EQ(Exp(-87.0001f), 0.0f);  // flushed
  EXPECT_GT(Exp(-87.0f), std::numeric_limits<float>::min());
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_EQ(Exp(88.72284f), kInf);
  EXPECT_TRUE(std::isfinite(Exp(kExpHigh)));
  EXPECT_TRUE(std::isnan(Exp(kNan)));
  for (float x = -87.0f; x < 88.0f; x += 0.37f) EXPECT_LE(Exp(x), Exp(x + 0.37f)) << x;
}

TEST(TanhF, IsWithinFourUlpsAndSaturates) {
  double worst = 0;
  for (float x = -12.0f; x <= 12.0f; x += 0.000317f) {
    if (x != 0) worst = std::max(worst, UlpsF(Tanh(x), std::tanh(static_cast<double>(x))));
  }
  EXPECT_LE(worst, 4.0);
  EXPECT_EQ(Tanh(kInf), 1.0f);
  EXPECT_EQ(Tanh(-kInf), -1.0f);
  EXPECT_EQ(Tanh(1e-30f), 1e-30f);
  EXPECT_TRUE(std::isnan(Tanh(kNan)));
}

TEST(Activations, MatchTheirFormulasInDouble) {
  for (float x = -30.0f; x <= 30.0f; x += 0.0117f) {
    const double d = x;
    EXPECT_NEAR(Sigmoid(x), 1 / (1 + std::exp(-d)), 2e-7);
    EXPECT_NEAR(Silu(x), d / (1 + std::exp(-d)), 4e-7 * std::max(1.0, std::abs(d)));
    const double gelu = 0.5 * d * (1 + std::tanh(std::sqrt(2 / M_PI) * (d + 0.044715 * d * d * d)));
    EXPECT_NEAR(GeluTanh(x), gelu, 6e-7 * std::max(1.0, std::abs(d)));
    EXPECT_NEAR(GeluErf(x), 0.5 * d * std::erfc(-d / std::sqrt(2.0)), 3e-7 * std::max(1.0, std::abs(d)));
  }
  EXPECT_EQ(Sigmoid(-200.0f), 0.0f);
  EXPECT_EQ(Sigmoid(200.0f), 1.0f);
  EXPECT_EQ(Silu(200.0f), 200.0f);
  EXPECT_EQ(GeluErf(kInf), kInf);
  EXPECT_EQ(GeluErf(-kInf), 0.0f);
  EXPECT_TRUE(std::isnan(GeluErf(kNan)));
}

TEST(ExpD, IsWithinOneAndAHalfUlps) {
  double worst = 0;
  for (double x = -707.9; x <= 709.7; x += 0.0119) {
    const long double want = std::exp(static_cast<long double>(x));
    worst = std::max(worst, static_cast<double>(std::abs(Exp(x) - want) / want));
  }
  EXPECT_LE(worst, 3.4e-16);  // 1.5 * 2^-52
  EXPECT_EQ(Exp(0.0), 1.0);
  EXPECT_EQ(Exp(-std::numeric_limits<double>::infinity()), 0.0);
  EXPECT_EQ(Exp(-1000.0), 0.0);
  EXPECT_EQ(Exp(1000.0), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<double>::quiet_NaN())));
}

TEST(LogD, IsWithinTwoUlpsAndKnowsItsEdges) {
  std::mt19937_64 rng(5);
  std::uniform_real_distribution<double> exponent(-1070, 1020), near(0.5, 2.0);
  for (int i = 0; i < 200000; ++i) {
    const double x = i % 2 == 0 ? std::exp2(exponent(rng)) : near(rng);
    const long double want = std::log(static_cast<long double>(x));
    ASSERT_LE(std::abs(Log(x) - want), 4.5e-16L * std::max(std::abs(want), 1e-3L)) << x;
  }
  EXPECT_EQ(Log(1.0), 0.0);
  EXPECT_EQ(Log(0.0), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(Log(std::numeric_limits<double>::infinity()), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(Log(-1.0)));
}

TEST(SoftplusF, IsTheRoundedOneOverItsWholeRange) {
  for (float x = -105.0f; x < 60.0f; x += 0.0137f) {
    const long double want = std::log1p(std::exp(static_cast<long double>(x)));
    EXPECT_NEAR(Softplus(x), static_cast<double>(want), static_cast<double>(want) * 0x1p-23 + 1e-45) << x;
  }
  EXPECT_EQ(Softplus(kInf), kInf);
  EXPECT_EQ(Softplus(-kInf), 0.0f);
  EXPECT_TRUE(std::isnan(Softplus(kNan)));
}

TEST(SinCosD, HoldsUpToTenMillionRadians) {
  std::mt19937_64 rng(6);
  double worst = 0;
  for (double scale : {1.0, 100.0, 1e4, 1e6, 1e7}) {
    std::uniform_real_distribution<double> angle(-scale, scale);
    for (int i = 0; i < 100000; ++i) {
      const double x = angle(rng);
      const SinCosResult r = SinCos(x);
      worst = std::max(worst, std::abs(static_cast<double>(r.sin - std::sin(static_cast<long double>(x)))));
      worst = std::max(worst, std::abs(static_cast<double>(r.cos - std::cos(static_cast<long double>(x)))));
    }
  }
  EXPECT_LE(worst, 4e-16);
  EXPECT_EQ(SinCos(0.0).sin, 0.0);
  EXPECT_EQ(SinCos(0.0).cos, 1.0);
}

// 2^24 + 1 loses the one in f32, 2^24 + 2 does not: which ones meet first shows in the sum.
float FoldWithOnesAt(std::vector<size_t> ones) {
  std::vector<float> x(40, 0.0f);
  x[0] = 16777216.0f;
  for (size_t i : ones) x[i] = 1.0f;
  return Fold16(x.data(), x.size());
}

TEST(Fold16, AddsLanesThenAFixedTree) {
  EXPECT_EQ(FoldWithOnesAt({16, 32}), 16777216.0f);   // one lane, in order of the elements
  EXPECT_EQ(FoldWithOnesAt({8, 4}), 16777216.0f);     // each meets lane 0 alone
  EXPECT_EQ(FoldWithOnesAt({4, 12}), 16777218.0f);    // 4 + 12 first
  EXPECT_EQ(FoldWithOnesAt({1, 9}), 16777218.0f);     // 1 + 9 first
  EXPECT_EQ(FoldWithOnesAt({2, 3}), 16777216.0f);     // 0 + 2, then 1 + 3
  EXPECT_EQ(FoldWithOnesAt({1, 3, 5}), 16777220.0f);  // 1 + 5, then + 3: three, rounded to even
}

TEST(Fold16, OfFewerThanSixteenUsesTheLanesThereAre) {
  const std::vector<float> x = {1, 2, 3};
  EXPECT_EQ(Fold16(x.data(), 3), 6.0f);
  EXPECT_EQ(Fold16(x.data(), 0), 0.0f);
  EXPECT_EQ(Fold16Squares(x.data(), 3), 14.0f);
  EXPECT_EQ(FoldMax16(x.data(), 3), 3.0f);
  EXPECT_EQ(FoldMax16(x.data(), 0), -kInf);
}

TEST(FoldMax16, PassesOverNan) {
  const std::vector<float> x = {kNan, -2, kNan, -1};
  EXPECT_EQ(FoldMax16(x.data(), 4), -1.0f);
}

}  // namespace
}  // namespace consilium::numerics
