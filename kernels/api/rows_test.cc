#include "common/exec/kernel_pool.h"
#include "kernels/api/numerics.h"
#include "kernels/api/test_support.h"

namespace consilium::kernels {
namespace {

class RowsTest : public EveryTable {};
INSTANTIATE_TEST_SUITE_P(Tables, RowsTest, testing::ValuesIn(TablesUnderTest()), TableName);

constexpr uint32_t kSizes[] = {1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 257, 1030};

TEST_P(RowsTest, RmsNormEqualsTheReferenceAndDoesNotDependOnTheBatch) {
  for (uint32_t n : kSizes) {
    const std::vector<float> x = TestFloats(5 * n, n), w = TestFloats(n, n + 1);
    std::vector<float> got(5 * n), want(5 * n), alone(n);
    RmsNorm(ops(), nullptr, {x.data(), n, 5}, w.data(), n, 1e-6f, {got.data(), n, 5});
    RmsNorm(Ref(), nullptr, {x.data(), n, 5}, w.data(), n, 1e-6f, {want.data(), n, 5});
    EXPECT_TRUE(SameBits(got, want)) << n;
    RmsNorm(ops(), nullptr, {x.data() + 3 * n, n, 1}, w.data(), n, 1e-6f, {alone.data(), n, 1});
    EXPECT_TRUE(SameBits({got.data() + 3 * n, n}, alone)) << n;
  }
  KernelPool pool(3);
  const uint32_t n = 1030;
  const std::vector<float> x = TestFloats(300 * n, 1), w = TestFloats(n, 2);
  std::vector<float> got(300 * n), want(300 * n);
  RmsNorm(ops(), &pool, {x.data(), n, 300}, w.data(), n, 1e-6f, {got.data(), n, 300});
  RmsNorm(ops(), nullptr, {x.data(), n, 300}, w.data(), n, 1e-6f, {want.data(), n, 300});
  EXPECT_TRUE(SameBits(got, want));
}

TEST_P(RowsTest, LayerNormEqualsTheReferenceAndDouble) {
  for (uint32_t n : kSizes) {
    const std::vector<float> x = TestFloats(5 * n, n), w = TestFloats(n, n + 1), b = TestFloats(n, n + 2);
    for (const float* bias : {b.data(), static_cast<const float*>(nullptr)}) {
      std::vector<float> got(5 * n), want(5 * n), alone = x;
      LayerNorm(ops(), nullptr, {x.data(), n, 5}, w.data(), bias, n, 1e-5f, {got.data(), n, 5});
      LayerNorm(Ref(), nullptr, {x.data(), n, 5}, w.data(), bias, n, 1e-5f, {want.data(), n, 5});
      EXPECT_TRUE(SameBits(got, want)) << n;
      // In place, and alone.
      LayerNorm(ops(), nullptr, {alone.data() + 3 * n, n, 1}, w.data(), bias, n, 1e-5f,
                {alone.data() + 3 * n, n, 1});
      EXPECT_TRUE(SameBits({got.data() + 3 * n, n}, {alone.data() + 3 * n, n})) << n;
    }
  }
  const uint32_t n = 257;
  std::vector<float> x = TestFloats(n, 4), w = TestFloats(n, 5), b = TestFloats(n, 6), got(n);
  for (float& v : x) v = std::min(9.0f, std::max(-9.0f, v));
  LayerNorm(ops(), nullptr, {x.data(), n, 1}, w.data(), b.data(), n, 1e-5f, {got.data(), n, 1});
  double mean = 0, square = 0;
  for (float v : x) mean += v / static_cast<double>(n);
  for (float v : x) square += (v - mean) * (v - mean);
  for (uint32_t i = 0; i < n; ++i) {
    const double normed = (x[i] - mean) / std::sqrt(square / n + 1e-5) * w[i];
    EXPECT_NEAR(got[i], normed + b[i], (std::abs(normed) + std::abs(w[i]) + std::abs(b[i])) * 80 * 0x1p-24);
  }
}

TEST_P(RowsTest, ClampedSwigluEqualsTheReferenceAndItsFormula) {
  for (uint32_t n : kSizes) {
    std::vector<float> gate = TestFloats(n, 21), up = TestFloats(n, 22), got(n), want(n);
    if (n > 16)
      gate[16] = NAN, up[15] = NAN, gate[1] = 1e30f, up[2] = -1e30f, up[3] = 1e30f, gate[4] = -1e30f;
    ops().swiglu_clamped(gate.data(), up.data(), 1.702f, 7.0f, n, got.data());
    Ref().swiglu_clamped(gate.data(), up.data(), 1.702f, 7.0f, n, want.data());
    EXPECT_TRUE(SameBits(got, want)) << n;
    for (uint32_t i = 0; i < n; ++i) {
      if (std::isnan(gate[i]) || std::isnan(up[i])) {
        EXPECT_TRUE(std::isnan(got[i]));
        continue;
      }
      const double g = std::min(gate[i], 7.0f), u = std::clamp(up[i], -7.0f, 7.0f);
      const double formula = (u + 1) * g / (1 + std::exp(-1.702 * g));
      EXPECT_NEAR(got[i], formula, std::abs(formula) * 40 * 0x1p-24 + 1e-6);
    }
  }
}

TEST_P(RowsTest, RmsNormIsCloseToDouble) {
  const uint32_t n = 1030;
  const std::vector<float> x = TestFloats(n, 4), w = TestFloats(n, 5);
  std::vector<float> got(n);
  RmsNorm(ops(), nullptr, {x.data(), n, 1}, w.data(), n, 1e-5f, {got.data(), n, 1});
  double sum = 0;
  for (float v : x) sum += static_cast<double>(v) * v;
  for (uint32_t i = 0; i < n; ++i) {
    const double want = x[i] / std::sqrt(sum / n + 1e-5) * w[i];
    EXPECT_NEAR(got[i], want, std::abs(want) * 80 * 0x1p-24 + 1e-44);  // 65 squares per lane, and the tree
  }
}

TEST_P(RowsTest, GatedScoresCombineAndAddEqualTheReference) {
  for (uint32_t n : kSizes) {
    std::vector<float> a = TestFloats(n, 6), b = TestFloats(n, 7), c = TestFloats(n, 8), d = TestFloats(n, 9);
    a[0] = n % 2 == 0 ? INFINITY : -89.0f;
    if (n > 16) a[16] = NAN, a[1] = -INFINITY, a[2] = 1e30f, a[3] = -1e30f;
    std::vector<float> got(n), want(n);
    for (Activation act : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
      ops().gated(act, a.data(), b.data(), n, got.data());
      Ref().gated(act, a.data(), b.data(), n, want.data());
      EXPECT_TRUE(SameBits(got, want)) << n;
    }
    for (bool sigmoid : {false, true}) {
      ops().scores(sigmoid, a.data(), 1.25f, n, got.data());
      Ref().scores(sigmoid, a.data(), 1.25f, n, want.data());
      EXPECT_TRUE(SameBits(got, want)) << n;
    }
    const float* slots[] = {a.data(), b.data(), c.data()};
    const float weights[] = {0.1f, 0.77f, -3.0f};
    for (uint32_t k = 0; k <= 3; ++k) {
      for (const float* shared : {static_cast<const float*>(nullptr), static_cast<const float*>(c.data())}) {
        ops().combine(d.data(), shared, slots, weights, k, n, got.data());
        Ref().combine(d.data(), shared, slots, weights, k, n, want.data());
        EXPECT_TRUE(SameBits(got, want)) << n;
      }
    }
    ops().add(a.data(), b.data(), n, got.data());
    Ref().add(a.data(), b.data(), n, want.data());
    EXPECT_TRUE(SameBits(got, want)) << n;
  }
}

TEST_P(RowsTest, ActivationsEqualTheScalarDefinitionOnADenseRamp) {
  std::vector<float> x;
  for (float v = -105.0f; v < 105.0f; v += 0.0107f) x.push_back(v);
  const uint32_t n = static_cast<uint32_t>(x.size());
  std::vector<float> one(n, 1.0f), y(n), want(n);
  ops().gated(Activation::kGeluTanh, x.data(), one.data(), n, y.data());
  for (uint32_t i = 0; i < n; ++i) want[i] = numerics::GeluTanh(x[i]);
  EXPECT_TRUE(SameBits(y, want));
  ops().gated(Activation::kGeluErf, x.data(), one.data(), n, y.data());
  for (uint32_t i = 0; i < n; ++i) want[i] = numerics::GeluErf(x[i]);
  EXPECT_TRUE(SameBits(y, want));
  ops().scores(false, x.data(), 0.0f, n, y.data());
  for (uint32_t i = 0; i < n; ++i) want[i] = numerics::Exp(x[i]);
  EXPECT_TRUE(SameBits(y, want));
}

TEST_P(RowsTest, WeightsEqualTheScalarDoubleExp) {
  std::vector<float> x = {INFINITY, -INFINITY, NAN, 0.0f, 1e30f, -1e30f};
  for (float v = -800.0f; v < 800.0f; v += 0.37f) x.push_back(v);
  for (size_t n : {size_t{1}, size_t{3}, size_t{8}, size_t{17}, x.size()}) {
    std::vector<double> got(n);
    ops().weights(x.data(), 3.25, 0.9, static_cast<uint32_t>(n), got.data());
    for (size_t i = 0; i < n; ++i) {
      const double want = numerics::Exp((static_cast<double>(x[i]) - 3.25) / 0.9);
      EXPECT_TRUE(std::memcmp(&got[i], &want, sizeof want) == 0 || (std::isnan(got[i]) && std::isnan(want)))
          << x[i];
    }
  }
}

TEST_P(RowsTest, CombineIsInSlotOrder) {
  // 2^24 + 1 + 1: in slot order both ones are lost, in another order they are not.
  const float big = 16777216.0f, one = 1.0f, zero = 0.0f;
  const float* slots[] = {&big, &one, &one};
  const float weights[] = {1, 1, 1};
  float out;
  ops().combine(&zero, nullptr, slots, weights, 3, 1, &out);
  EXPECT_EQ(out, 16777216.0f);
  const float* other[] = {&one, &one, &big};
  ops().combine(&zero, nullptr, other, weights, 3, 1, &out);
  EXPECT_EQ(out, 16777218.0f);
}

TEST_P(RowsTest, RopeEqualsTheReferenceInBothStyles) {
  for (uint32_t n : {2u, 8u, 30u, 32u, 34u, 64u, 128u, 1024u}) {
    const std::vector<float> x = TestFloats(n, n), cos = TestFloats(n / 2, 1), sin = TestFloats(n / 2, 2);
    for (bool interleaved : {false, true}) {
      std::vector<float> got = x, want = x;
      ops().rope(got.data(), n, interleaved, cos.data(), sin.data());
      Ref().rope(want.data(), n, interleaved, cos.data(), sin.data());
      EXPECT_TRUE(SameBits(got, want)) << n;
    }
  }
}

TEST(Rope, RotatesPairsOfBothStyles) {
  const float cos[] = {0.6f, 1.0f}, sin[] = {0.8f, 0.0f};
  std::vector<float> half = {1, 3, 2, 4}, pairs = {1, 2, 3, 4};
  Ref().rope(half.data(), 4, false, cos, sin);  // pairs (0, 2), (1, 3)
  Ref().rope(pairs.data(), 4, true, cos, sin);  // pairs (0, 1), (2, 3), left de-interleaved
  const std::vector<float> want = {1 * 0.6f - 2 * 0.8f, 3, 2 * 0.6f + 1 * 0.8f, 4};
  EXPECT_EQ(half, want);
  EXPECT_EQ(pairs, want);
}

TEST(Rope, TableIsTheRoundedCosineOfTheRoundedAngle) {
  const std::vector<float> inverse = {1.0f, 0.1f, 0.01f, 1e-4f};
  std::vector<float> cos(4), sin(4);
  for (uint32_t position : {0u, 1u, 1000u, 163839u, 9999999u}) {
    RopeRow(inverse, position, 1.0f, cos.data(), sin.data());
    for (int i = 0; i < 4; ++i) {
      const double angle = static_cast<float>(position) * inverse[i];
      EXPECT_NEAR(cos[i], std::cos(angle), 6.1e-8);
      EXPECT_NEAR(sin[i], std::sin(angle), 6.1e-8);
    }
  }
  RopeRow(inverse, 0, 1.5f, cos.data(), sin.data());
  EXPECT_EQ(cos, std::vector<float>(4, 1.5f));
  EXPECT_EQ(sin, std::vector<float>(4, 0.0f));
}

TEST(OpsTable, UnknownNamesListWhatIsThere) {
  const auto missing = FindOps("neon");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(missing.status().message()).find("scalar"), std::string::npos);
  EXPECT_EQ(AvailableOps().front(), "ref");
  EXPECT_EQ((*FindOps("auto"))->name, AvailableOps().back());
}

// The class: what `ref` computes. It changes only when the definition does, with a new class revision.
constexpr uint64_t kFingerprint = 0x5bf435d1ce85ea26ull;

TEST(Fingerprint, OfEveryTableIsTheConstantOfTheClass) {
  for (std::string_view name : AvailableOps()) {
    EXPECT_EQ(Fingerprint(*FindOps(name).value()), kFingerprint) << name;
  }
}

TEST(Fingerprint, ChangesWithOneWrongBitAnywhere) {
  Ops broken = Ref();
  broken.add = [](const float* a, const float* b, uint32_t n, float* out) {
    Ref().add(a, b, n, out);
    out[n - 1] = std::nextafter(out[n - 1], 1e30f);
  };
  EXPECT_NE(Fingerprint(broken), kFingerprint);
}

}  // namespace
}  // namespace consilium::kernels
