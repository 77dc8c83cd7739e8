#include <tuple>

#include "common/exec/kernel_pool.h"
#include "kernels/api/test_support.h"

namespace consilium::kernels {
namespace {

class GemmTest : public EveryTable {};
INSTANTIATE_TEST_SUITE_P(Tables, GemmTest, testing::ValuesIn(TablesUnderTest()), TableName);

std::vector<float> Apply(const Ops& ops, const PackedMatrix& w, const std::vector<float>& x, size_t rows,
                         KernelPool* pool = nullptr, const float* bias = nullptr) {
  std::vector<float> y(rows * w.out, -7.0f);
  Gemm(ops, pool, w, {x.data(), w.in, rows}, {y.data(), w.out, rows}, bias);
  return y;
}

TEST_P(GemmTest, EqualsTheReferenceInEveryBitOnTheShapeGrid) {
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    for (uint32_t out : {1, 15, 16, 17, 64, 100, 257}) {
      for (uint32_t in : {1, 2, 16, 33, 100, 257}) {
        const TestMatrix w(dtype, out, in, out * 1000 + in);
        const std::vector<float> bias = TestFloats(out, in);
        for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33}) {
          const std::vector<float> x = TestFloats(rows * in, rows);
          ASSERT_TRUE(SameBits(Apply(ops(), w.packed, x, rows), Apply(Ref(), w.packed, x, rows)))
              << DTypeName(dtype) << " out " << out << " in " << in << " rows " << rows;
          ASSERT_TRUE(SameBits(Apply(ops(), w.packed, x, rows, nullptr, bias.data()),
                               Apply(Ref(), w.packed, x, rows, nullptr, bias.data())))
              << "with bias, out " << out << " in " << in << " rows " << rows;
        }
      }
    }
  }
}

TEST_P(GemmTest, ARowDoesNotDependOnItsCompanions) {
  const TestMatrix w(DType::kBf16, 200, 130, 1);
  const std::vector<float> all = TestFloats(40 * 130, 2);
  const std::vector<float> alone = Apply(ops(), w.packed, {all.begin(), all.begin() + 130}, 1);
  for (size_t rows : {2, 7, 8, 13, 40}) {
    for (size_t at : {size_t{0}, rows / 2, rows - 1}) {
      std::vector<float> x(all.begin(), all.begin() + rows * 130);
      std::copy_n(all.begin(), 130, x.begin() + at * 130);
      const std::vector<float> y = Apply(ops(), w.packed, x, rows);
      EXPECT_TRUE(SameBits({y.data() + at * 200, 200}, alone)) << rows << " rows, row " << at;
    }
  }
}

TEST_P(GemmTest, PoolSizeAndPanelRangeDoNotShow) {
  const TestMatrix w(DType::kF32, 1000, 300, 3);
  for (size_t rows : {1, 5, 20}) {
    const std::vector<float> x = TestFloats(rows * 300, rows);
    const std::vector<float> want = Apply(ops(), w.packed, x, rows);
    for (uint32_t threads : {1, 2, 3}) {
      KernelPool pool(threads);
      EXPECT_TRUE(SameBits(Apply(ops(), w.packed, x, rows, &pool), want)) << threads << " threads";
    }
    std::vector<float> y(rows * 1000);
    for (uint32_t p = 0; p < w.packed.panels(); p += 5) {
      ops().gemm(w.packed, {x.data(), 300, rows}, {y.data(), 1000, rows}, p,
                 std::min(p + 5, w.packed.panels()), nullptr);
    }
    EXPECT_TRUE(SameBits(y, want));
  }
}

TEST_P(GemmTest, RowsMayLieAtAnyStrideAndNothingElseIsWritten) {
  const TestMatrix w(DType::kBf16, 20, 40, 4);
  const std::vector<float> x = TestFloats(3 * 57, 5);
  std::vector<float> y(3 * 33, 99.0f);
  Gemm(ops(), nullptr, w.packed, {x.data(), 57, 3}, {y.data(), 33, 3});
  for (size_t r = 0; r < 3; ++r) {
    EXPECT_TRUE(SameBits({y.data() + r * 33, 20},
                         Apply(Ref(), w.packed, {x.begin() + r * 57, x.begin() + r * 57 + 40}, 1)));
    for (size_t c = 20; c < 33; ++c) EXPECT_EQ(y[r * 33 + c], 99.0f);
  }
}

TEST(GemmReference, IsOneChainOfFmaOverKAndCloseToDouble) {
  const uint32_t out = 33, in = 500;
  const TestMatrix w(DType::kF32, out, in, 8);
  const std::vector<float> x = TestFloats(in, 9);
  const std::vector<float> y = Apply(Ref(), w.packed, x, 1);
  for (uint32_t c = 0; c < out; ++c) {
    float chain = 0;
    double exact = 0, magnitude = 0;
    for (uint32_t k = 0; k < in; ++k) {
      chain = std::fma(x[k], w.values[c * in + k], chain);
      exact += static_cast<double>(x[k]) * w.values[c * in + k];
      magnitude += std::abs(static_cast<double>(x[k]) * w.values[c * in + k]);
    }
    EXPECT_EQ(y[c], chain);
    EXPECT_NEAR(y[c], exact, magnitude * in * 0x1p-24);  // one rounding of at most half an ulp per step
  }
}

TEST(Pack, KeepsEveryElementAndPadsWithZeros) {
  const TestMatrix w(DType::kBf16, 18, 5, 10);
  ASSERT_EQ(w.packed.panels(), 2u);
  const auto* data = reinterpret_cast<const uint16_t*>(w.packed.data.get());
  for (uint32_t c = 0; c < 32; ++c) {
    for (uint32_t k = 0; k < 5; ++k) {
      const float v =
          __builtin_bit_cast(float, static_cast<uint32_t>(data[(c / 16) * 80 + k * 16 + c % 16]) << 16);
      EXPECT_TRUE(SameBits({&v, 1}, std::vector<float>{c < 18 ? w.values[c * 5 + k] : 0.0f}));
    }
  }
}

TEST(Pack, KeepsHalfPrecisionAndWidensItExactly) {
  const uint16_t half[] = {0x3C00, 0xC000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0x0000, 0x8000, 0x0400};
  const float want[] = {1.0f, -2.0f, 0x1p-24f, -0x1.FF8p-15f, 65504.0f, INFINITY, 0.0f, -0.0f, 0x1p-14f};
  const PackedMatrix m = Pack(DType::kF16, reinterpret_cast<const std::byte*>(half), 9, 1);
  EXPECT_EQ(m.format, WeightFormat::kF16);
  for (uint32_t c = 0; c < 9; ++c) EXPECT_TRUE(SameBits(std::vector{WeightValue(m, c, 0)}, {want + c, 1}));
}

}  // namespace
}  // namespace consilium::kernels
