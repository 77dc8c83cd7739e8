// Products over packed weights in both classes: every table against the reference, bit for bit.
#include <algorithm>

#include "common/exec/kernel_pool.h"
#include "kernels/api/quant_support.h"

namespace consilium::kernels {
namespace {

class QuantGemmTest : public EveryTable {};
INSTANTIATE_TEST_SUITE_P(Tables, QuantGemmTest, testing::ValuesIn(TablesUnderTest()), TableName);

std::vector<float> Apply(const Ops& ops, NumericsClass c, const PackedMatrix& w, const std::vector<float>& x,
                         size_t rows, KernelPool* pool = nullptr, const float* bias = nullptr) {
  std::vector<float> y(rows * w.out, -7.0f);
  Gemm(ops, pool, c, w, {x.data(), w.in, rows}, {y.data(), w.out, rows}, bias);
  return y;
}

// The reference does one row at a time: rows cannot show in it.
void ExpectGrid(const Ops& ops, NumericsClass c, const std::vector<WeightFormat>& formats) {
  uint64_t seed = 0;
  for (WeightFormat format : formats) {
    for (uint32_t in : InputSizes(format)) {
      for (uint32_t out : {1, 16, 33, 150}) {
        const DType scale = seed % 3 == 0 ? DType::kF16 : seed % 3 == 1 ? DType::kBf16 : DType::kF32;
        const PackedMatrix w = QuantSource(format, out, in, ++seed, scale).Packed();
        const std::vector<float> bias = TestFloats(out, in);
        const size_t most = 35;
        const std::vector<float> all = TestFloats(most * in, out);
        const std::vector<float> want = Apply(Ref(), c, w, all, most);
        const std::vector<float> want_bias = Apply(Ref(), c, w, all, 9, nullptr, bias.data());
        for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 35}) {
          ASSERT_TRUE(SameBits(Apply(ops, c, w, all, rows), {want.data(), rows * out}))
              << WeightFormatName(format) << " out " << out << " in " << in << " rows " << rows;
        }
        for (size_t rows : {3, 9}) {
          ASSERT_TRUE(
              SameBits(Apply(ops, c, w, all, rows, nullptr, bias.data()), {want_bias.data(), rows * out}))
              << WeightFormatName(format) << " with bias, out " << out << " in " << in << " rows " << rows;
        }
      }
    }
  }
}

TEST_P(QuantGemmTest, ClassF32EqualsTheReferenceInEveryBitForEveryFormat) {
  ExpectGrid(ops(), NumericsClass::kF32, AllFormats());
}

TEST_P(QuantGemmTest, ClassI8g32EqualsTheReferenceInEveryBitForEveryFormat) {
  ExpectGrid(ops(), NumericsClass::kI8g32, AllFormats());
}

TEST_P(QuantGemmTest, ManyRowsAreTheirRowsAloneWhereverABlockOfRowsEnds) {
  for (WeightFormat format :
       {WeightFormat::kInt8, WeightFormat::kInt4Zero, WeightFormat::kQ4K, WeightFormat::kQ6K}) {
    const uint32_t out = 40, in = 512;
    const PackedMatrix w = QuantSource(format, out, in, 5).Packed();
    const std::vector<float> x = TestFloats(139 * in, 6);
    for (NumericsClass c : {NumericsClass::kF32, NumericsClass::kI8g32}) {
      const std::vector<float> want = Apply(Ref(), c, w, x, 139);
      for (size_t rows : {63, 64, 65, 71, 128, 139}) {
        EXPECT_TRUE(SameBits(Apply(ops(), c, w, x, rows), {want.data(), rows * out}))
            << WeightFormatName(format) << " " << NumericsClassName(c) << " rows " << rows;
      }
    }
  }
}

TEST_P(QuantGemmTest, PoolSizeDoesNotShow) {
  for (WeightFormat format : {WeightFormat::kQ8_0, WeightFormat::kQ4K, WeightFormat::kFp8}) {
    const PackedMatrix w = QuantSource(format, 700, 512, 3).Packed();
    for (NumericsClass c : {NumericsClass::kF32, NumericsClass::kI8g32}) {
      for (size_t rows : {1, 6, 20}) {
        const std::vector<float> x = TestFloats(rows * 512, rows);
        const std::vector<float> want = Apply(ops(), c, w, x, rows);
        for (uint32_t threads : {1, 2, 3}) {
          KernelPool pool(threads);
          EXPECT_TRUE(SameBits(Apply(ops(), c, w, x, rows, &pool), want)) << threads << " threads";
        }
      }
    }
  }
}

TEST_P(QuantGemmTest, ExtremeCodesAndActivationsStayExact) {
  // Every product at its largest: 127 or 128 times 127, 32 of them, in pairs of one sign and of both.
  for (WeightFormat format : IntegerFormats()) {
    const uint32_t in = GranularityK(format) == 1 ? 64 : GranularityK(format);
    for (int fill : {0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x81}) {
      QuantSource s(format, 16, in, 1);
      for (size_t i = 0; i < s.values.size(); ++i) {
        if (i % 18 > 3 && i % 210 < 192) s.values[i] = static_cast<std::byte>(fill);
      }
      absl::StatusOr<PackedMatrix> w = Pack(s.source);
      if (!w.ok()) continue;   // the fill made a scale that is no number
      const size_t most = 12;  // row r has pattern r % 4
      std::vector<float> x(most * in);
      for (size_t i = 0; i < x.size(); ++i) x[i] = (i / in % 4 >> (i % in % 2) & 1) != 0 ? 127.0f : -127.0f;
      const std::vector<float> want = Apply(Ref(), NumericsClass::kI8g32, *w, x, most);
      for (size_t rows : {1, 2, 4, 6, 8, 12}) {
        EXPECT_TRUE(SameBits(Apply(ops(), NumericsClass::kI8g32, *w, x, rows), {want.data(), rows * w->out}))
            << WeightFormatName(format) << " fill " << fill << " rows " << rows;
      }
    }
  }
}

TEST_P(QuantGemmTest, RowsAreQuantisedAsTheReferenceDoes) {
  for (uint32_t n : {1u, 5u, 31u, 32u, 33u, 100u, 512u}) {
    std::vector<float> x = TestFloats(6 * n, n);
    for (uint32_t i = 0; i < n; ++i) x[n + i] = 0;  // a row of zeros
    x[2 * n] = NAN;
    x[3 * n + n / 2] = -INFINITY;
    for (uint32_t i = 0; i < n; ++i) x[4 * n + i] = 1e-36f * static_cast<float>(i);        // below the floor
    for (uint32_t i = 0; i < n; ++i) x[5 * n + i] = static_cast<float>(i % 255) - 126.5f;  // ties
    std::vector<std::byte> got(6 * QuantRowBytes(n)), want(got.size());
    ops().quantize_rows({x.data(), n, 6}, n, got.data());
    Ref().quantize_rows({x.data(), n, 6}, n, want.data());
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0) << n;
  }
}

TEST(QuantRowsTest, RoundToNearestOfTheLargestAnd127AndTravelInFrames) {
  const uint32_t n = 45;
  std::vector<float> x = TestFloats(n, 4);
  for (float& v : x) v = std::clamp(v, -4.0f, 4.0f);
  x[3] = -300.0f;
  x[40] = NAN;
  std::vector<std::byte> row(QuantRowBytes(n)), wire(WireRowBytes(n)), back(row.size());
  Ref().quantize_rows({x.data(), n, 1}, n, row.data());
  const auto* q = reinterpret_cast<const int8_t*>(row.data());
  EXPECT_EQ(q[3], -127);
  std::vector<float> y(n);
  DequantizeQuantRow(row.data(), n, y.data());
  for (uint32_t i = 0; i < 32; ++i) EXPECT_NEAR(y[i], x[i], 300.0 / 127 * 0.5001);
  EXPECT_TRUE(std::isnan(y[33]));  // one bad element marks its group, not its neighbours
  WireFromQuantRow(row.data(), n, wire.data());
  QuantRowFromWire(wire.data(), n, back.data());
  EXPECT_EQ(row, back);
  wire[7] = std::byte{0x80};  // -128 is no code: whoever sends it gets -127
  QuantRowFromWire(wire.data(), n, back.data());
  EXPECT_EQ(static_cast<int8_t>(back[7]), -127);
}

TEST(QuantReference, I8g32IsCloseToTheProductOfDequantisedWeightsAndRows) {
  for (WeightFormat format : IntegerFormats()) {
    const uint32_t in = 512, out = 20;
    const PackedMatrix w = QuantSource(format, out, in, 9).Packed();
    const std::vector<float> x = TestFloats(in, 10);
    const std::vector<float> y = Apply(Ref(), NumericsClass::kI8g32, w, x, 1);
    std::vector<std::byte> row(QuantRowBytes(in));
    std::vector<float> xq(in);
    Ref().quantize_rows({x.data(), in, 1}, in, row.data());
    DequantizeQuantRow(row.data(), in, xq.data());
    for (uint32_t c = 0; c < out; ++c) {
      double want = 0, magnitude = 0;
      for (uint32_t k = 0; k < in; ++k) {
        const double p = static_cast<double>(WeightValue(w, c, k)) * xq[k];
        want += p;
        magnitude += std::abs(p);
      }
      // Roundings: sx * s and an fma per group and part, twice with a minimum; the minimum's parts may
      // cancel.
      EXPECT_NEAR(y[c], want, magnitude * 1e-4) << WeightFormatName(format);
    }
  }
}

// ---- Experts in class i8g32

FfnWeights Expert(WeightFormat up, WeightFormat down, uint32_t hidden, uint32_t inter, uint64_t seed) {
  FfnWeights w;
  w.gate = QuantSource(up, inter, hidden, seed).Packed();
  w.up = QuantSource(up, inter, hidden, seed + 1).Packed();
  w.down = QuantSource(down, hidden, inter, seed + 2).Packed();
  return w;
}
std::vector<float> OneRow(const Ops& ops, const FfnWeights& w, const float* x) {
  const NumericsClass c = NumericsClass::kI8g32;
  std::vector<float> gate(w.gate.out), up(w.up.out), y(w.down.out);
  Gemm(ops, nullptr, c, w.gate, {x, w.gate.in, 1}, {gate.data(), gate.size(), 1});
  Gemm(ops, nullptr, c, w.up, {x, w.up.in, 1}, {up.data(), up.size(), 1});
  ops.gated(w.activation, gate.data(), up.data(), w.gate.out, gate.data());
  Gemm(ops, nullptr, c, w.down, {gate.data(), w.down.in, 1}, {y.data(), y.size(), 1});
  return y;
}

TEST_P(QuantGemmTest, ExpertsInI8g32EqualTheReferenceFromFloatsAndFromFrameRows) {
  const uint32_t hidden = 256, inter = 512;
  const FfnWeights experts[] = {Expert(WeightFormat::kQ4K, WeightFormat::kQ6K, hidden, inter, 1),
                                Expert(WeightFormat::kMxfp4, WeightFormat::kQ8_0, hidden, inter, 4),
                                Expert(WeightFormat::kInt4, WeightFormat::kBf16, hidden, inter, 7)};
  const std::vector<uint32_t> counts = {5, 1, 9};
  const std::vector<float> x = TestFloats(15 * hidden, 1);
  std::vector<std::byte> wire(15 * WireRowBytes(hidden));
  for (size_t r = 0; r < 15; ++r) {
    std::vector<std::byte> row(QuantRowBytes(hidden));
    Ref().quantize_rows({x.data() + r * hidden, hidden, 1}, hidden, row.data());
    WireFromQuantRow(row.data(), hidden, wire.data() + r * WireRowBytes(hidden));
  }
  std::vector<FfnGroup> groups;
  for (uint32_t e = 0, first = 0; e < 3; first += counts[e++])
    groups.push_back({&experts[e], first, counts[e]});
  std::vector<float> want;
  for (uint32_t e = 0, r = 0; e < 3; ++e) {
    for (uint32_t i = 0; i < counts[e]; ++i, ++r) {
      const std::vector<float> y = OneRow(Ref(), experts[e], x.data() + r * hidden);
      want.insert(want.end(), y.begin(), y.end());
    }
  }
  KernelPool pool(2);
  GroupedFfn ffn;
  for (bool framed : {false, true, false}) {
    std::vector<float> y(x.size());
    std::vector<FfnRow> rows;
    for (size_t r = 0; r < 15; ++r) {
      rows.push_back({framed ? nullptr : x.data() + r * hidden, y.data() + r * hidden,
                      framed ? wire.data() + r * WireRowBytes(hidden) : nullptr});
    }
    ffn.Run(ops(), &pool, groups, rows, NumericsClass::kI8g32);
    EXPECT_TRUE(SameBits(y, want)) << (framed ? "frame rows" : "floats");
  }
}

// The classes over packed weights: what `ref` computes.
constexpr uint64_t kPackedFingerprint = 0x445cd5d5127dfaebull;
constexpr uint64_t kI8g32Fingerprint = 0x1077735b84565c26ull;

TEST(QuantFingerprint, OfEveryTableIsTheConstantOfItsClass) {
  for (std::string_view name : AvailableOps()) {
    const Ops& ops = *FindOps(name).value();
    EXPECT_EQ(Fingerprint(ops, NumericsClass::kF32), kPackedFingerprint) << name;
    EXPECT_EQ(Fingerprint(ops, NumericsClass::kI8g32), kI8g32Fingerprint) << name;
  }
}

}  // namespace
}  // namespace consilium::kernels
