// What a weight is worth: packed panels, dequantised rows and oracles written here from the formats' papers.
#include <algorithm>
#include <cstdint>

#include "kernels/api/quant_support.h"

namespace consilium::kernels {
namespace {

using L = WeightSource::Layout;

double Half(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  const double sign = h >> 15 ? -1 : 1;
  const int e = h >> 10 & 31, m = h & 1023;
  return sign * (e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25));
}
int Byte(const std::byte* p) { return static_cast<int>(*p); }
double Fp4(int code) {
  constexpr double kValues[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  return (code & 8 ? -1 : 1) * kValues[code & 7];
}

constexpr int kIq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Input b of a block of 256 of two or three bits.
double Q2K(const std::byte* p, uint32_t b) {
  const int f = Byte(p + b / 16), q = Byte(p + 16 + b / 128 * 32 + b % 32) >> (b % 128 / 32 * 2) & 3;
  return Half(p + 80) * (f & 15) * q - Half(p + 82) * (f >> 4);
}
double Q3K(const std::byte* p, uint32_t b) {
  const uint32_t g = b / 16;
  const int low = Byte(p + 96 + g % 8) >> (g < 8 ? 0 : 4) & 15,
            high = Byte(p + 104 + g % 4) >> (2 * (g / 4)) & 3;
  const int two = Byte(p + 32 + b / 128 * 32 + b % 32) >> (b % 128 / 32 * 2) & 3;
  const bool third = (Byte(p + b % 32) >> (b / 32) & 1) != 0;
  return Half(p + 108) * (low + 16 * high - 32) * (third ? two : two - 4);
}
double Iq4Xs(const std::byte* p, uint32_t b) {
  const uint32_t j = b / 32, i = b % 32;
  const int scale =
      (Byte(p + 4 + j / 2) >> (j % 2 * 4) & 15) | (((Byte(p + 2) | Byte(p + 3) << 8) >> (2 * j)) & 3) << 4;
  const int byte = Byte(p + 8 + j * 16 + i % 16);
  return Half(p) * (scale - 32) * kIq4[i < 16 ? byte & 15 : byte >> 4];
}

// A weight of a ggml matrix, in double.
double Gguf(const QuantSource& s, uint32_t row, uint32_t k) {
  const WeightSource& w = s.source;
  const auto block = [&](size_t unit, size_t bytes) {
    return s.values.data() + (row * (w.in / unit) + k / unit) * bytes;
  };
  const uint32_t i = k % 32, b = k % 256;
  const auto nibble = [&](const std::byte* q) { return i < 16 ? Byte(q + i) & 15 : Byte(q + i - 16) >> 4; };
  const auto fifth = [&](const std::byte* q) { return (Byte(q + i / 8) >> (i % 8) & 1) * 16; };
  switch (w.format) {
    case WeightFormat::kMxfp4: {
      const std::byte* p = block(32, 17);
      return std::ldexp(Fp4(nibble(p + 1)), Byte(p) - 127);
    }
    case WeightFormat::kQ8_0: {
      const std::byte* p = block(32, 34);
      return Half(p) * static_cast<int8_t>(p[2 + i]);
    }
    case WeightFormat::kQ4_0: {
      const std::byte* p = block(32, 18);
      return Half(p) * (nibble(p + 2) - 8);
    }
    case WeightFormat::kQ4_1: {
      const std::byte* p = block(32, 20);
      return Half(p) * nibble(p + 4) + Half(p + 2);
    }
    case WeightFormat::kQ5_0: {
      const std::byte* p = block(32, 22);
      return Half(p) * (nibble(p + 6) + fifth(p + 2) - 16);
    }
    case WeightFormat::kQ5_1: {
      const std::byte* p = block(32, 24);
      return Half(p) * (nibble(p + 8) + fifth(p + 4)) + Half(p + 2);
    }
    case WeightFormat::kQ4K:
    case WeightFormat::kQ5K: {
      const bool five = w.format == WeightFormat::kQ5K;
      const std::byte* p = block(256, five ? 176 : 144);
      const std::byte* f = p + 4;
      const int j = static_cast<int>(b / 32);
      const int sc = j < 4 ? Byte(f + j) & 63 : (Byte(f + j + 4) & 15) | (Byte(f + j - 4) >> 6) << 4;
      const int m = j < 4 ? Byte(f + j + 4) & 63 : (Byte(f + j + 4) >> 4) | (Byte(f + j) >> 6) << 4;
      const int pair = Byte(p + (five ? 48 : 16) + b / 64 * 32 + i);
      int q = j % 2 == 0 ? pair & 15 : pair >> 4;
      if (five) q += (Byte(p + 16 + i) >> j & 1) * 16;
      return Half(p) * sc * q - Half(p + 2) * m;
    }
    case WeightFormat::kIq4Nl: {
      const std::byte* p = block(32, 18);
      return Half(p) * kIq4[nibble(p + 2)];
    }
    case WeightFormat::kQ2K:
      return Q2K(block(256, 84), b);
    case WeightFormat::kQ3K:
      return Q3K(block(256, 110), b);
    case WeightFormat::kIq4Xs:
      return Iq4Xs(block(256, 136), b);
    default: {
      const std::byte* p = block(256, 210);
      const uint32_t half = b / 128, in_half = b % 128, quarter = in_half / 32;
      const int low = Byte(p + 64 * half + in_half % 64);
      const int high = Byte(p + 128 + 32 * half + i) >> (2 * quarter) & 3;
      const int q = (in_half < 64 ? low & 15 : low >> 4) + 16 * high - 32;
      return Half(p + 208) * static_cast<int8_t>(p[192 + b / 16]) * q;
    }
  }
}

TEST(Weights, OfGgmlFormatsAreWhatGgmlReads) {
  for (WeightFormat format : IntegerFormats()) {
    if (format < WeightFormat::kMxfp4) continue;
    const QuantSource s(format, 21, 512, 5);
    const PackedMatrix m = s.Packed();
    for (uint32_t r = 0; r < 21; ++r) {
      for (uint32_t k = 0; k < 512; ++k) {
        // Every product is exact in f32, so a value has one rounding.
        ASSERT_EQ(WeightValue(m, r, k), static_cast<float>(Gguf(s, r, k)))
            << WeightFormatName(format) << " row " << r << " input " << k;
      }
    }
  }
}

float Scale(const QuantSource& s, size_t i) {
  uint32_t bits = 0;
  std::memcpy(&bits, s.scales.data() + i * DTypeBytes(s.source.scale_type), DTypeBytes(s.source.scale_type));
  if (s.source.scale_type == DType::kF16) return static_cast<float>(Half(s.scales.data() + 2 * i));
  return __builtin_bit_cast(float, s.source.scale_type == DType::kBf16 ? bits << 16 : bits);
}

void ExpectCompressedTensors(DType type, uint32_t in, uint32_t group) {
  const uint32_t out = 21, groups = (in + group - 1) / group;
  const uint32_t nibble_row = (in + 7) / 8 * 4, byte_row = (in + 3) / 4 * 4;
  const QuantSource sym(WeightFormat::kInt4, out, in, 1, type, L::kCompressed, group);
  const QuantSource zero(WeightFormat::kInt4Zero, out, in, 2, type, L::kCompressed, group);
  const QuantSource bytes(WeightFormat::kInt8, out, in, 3, type, L::kCompressed, group);
  const QuantSource plain(WeightFormat::kInt8, out, in, 4, type, L::kPlain, group);
  const PackedMatrix m[] = {sym.Packed(), zero.Packed(), bytes.Packed(), plain.Packed()};
  for (uint32_t r = 0; r < out; ++r) {
    for (uint32_t k = 0; k < in; ++k) {
      const size_t g = r * groups + k / group;
      const auto nibble = [&](const QuantSource& s) {
        return Byte(&s.values[r * nibble_row + k / 2]) >> (k % 2 * 4) & 15;
      };
      const int zp = Byte(&zero.zeros[(r / 8 * groups + k / group) * 4 + r % 8 / 2]) >> (r % 2 * 4) & 15;
      ASSERT_EQ(WeightValue(m[0], r, k), static_cast<float>(nibble(sym) - 8) * Scale(sym, g));
      ASSERT_EQ(WeightValue(m[1], r, k), static_cast<float>(nibble(zero) - zp) * Scale(zero, g));
      ASSERT_EQ(WeightValue(m[2], r, k),
                static_cast<float>(Byte(&bytes.values[r * byte_row + k]) - 128) * Scale(bytes, g));
      ASSERT_EQ(WeightValue(m[3], r, k),
                static_cast<float>(static_cast<int8_t>(plain.values[r * in + k])) * Scale(plain, g));
    }
  }
}

TEST(Weights, OfCompressedTensorsAreCodeMinusZeroPointTimesScale) {
  for (DType type : {DType::kBf16, DType::kF16, DType::kF32}) {
    for (uint32_t group : {32u, 64u, 128u, 200u}) ExpectCompressedTensors(type, 200, group);
    ExpectCompressedTensors(type, 197, 32);  // rows that end within a word and a byte
  }
}

// Words [in / 8, out] (bytes: [in / 4, out]), scales [groups, out], zero points words [groups, out / 8].
void ExpectWords(WeightFormat format, uint32_t group) {
  const uint32_t out = 24, in = 192;
  const QuantSource s(format, out, in, group, DType::kF16, L::kWords, group);
  const PackedMatrix m = s.Packed();
  std::vector<float> row(in);
  const auto word = [](const std::vector<std::byte>& v, size_t i) {
    uint32_t w;
    std::memcpy(&w, &v[4 * i], 4);
    return w;
  };
  for (uint32_t r = 0; r < out; ++r) {
    DequantizeRow(s.source, r, row.data());
    for (uint32_t k = 0; k < in; ++k) {
      const uint32_t g = k / group;
      int q;
      if (format == WeightFormat::kInt8) {
        q = static_cast<int>(word(s.values, k / 4 * out + r) >> (8 * (k % 4)) & 255) - 128;
      } else {
        q = static_cast<int>(word(s.values, k / 8 * out + r) >> (4 * (k % 8)) & 15);
        q -= format == WeightFormat::kInt4 ? 8 : word(s.zeros, g * (out / 8) + r / 8) >> (4 * (r % 8)) & 15;
      }
      ASSERT_EQ(WeightValue(m, r, k), static_cast<float>(q) * Scale(s, g * out + r)) << r << " " << k;
      ASSERT_EQ(row[k], WeightValue(m, r, k));
    }
  }
  // Some inputs at a time.
  PackedMatrix pieces = AllocatePacked(s.source, out).value();
  for (uint32_t at = 0; at < in; at += 64) {
    WeightSource part = s.source;
    part.first_k = at;
    part.count_k = 64;
    ASSERT_TRUE(PackInto(part, 0, &pieces, at).ok());
  }
  EXPECT_EQ(std::memcmp(pieces.data.get(), m.data.get(), m.bytes()), 0);
}

TEST(Weights, OfGptqLieInWordsAlongTheInputs) {
  for (WeightFormat format : {WeightFormat::kInt4, WeightFormat::kInt4Zero, WeightFormat::kInt8}) {
    for (uint32_t group : {32u, 64u, 192u}) ExpectWords(format, group);
  }
  QuantSource ragged(WeightFormat::kInt4, 8, 64, 1, DType::kF16, L::kWords);
  ragged.source.in = 56;
  EXPECT_FALSE(CheckSource(ragged.source).ok());
}

TEST(Weights, OfGptOssHoldNeighboursInAByte) {
  const QuantSource s(WeightFormat::kMxfp4, 20, 96, 1, DType::kF32, L::kGptOss);
  const PackedMatrix m = s.Packed();
  for (uint32_t r = 0; r < 20; ++r) {
    for (uint32_t k = 0; k < 96; ++k) {
      const int code = Byte(&s.values[r * 48 + k / 2]) >> (k % 2 * 4) & 15;
      ASSERT_EQ(WeightValue(m, r, k), std::ldexp(Fp4(code), Byte(&s.scales[r * 3 + k / 32]) - 127));
    }
  }
}

TEST(Weights, OfFp8AreRoundedOnceAndTheLastBlocksMayBeRagged) {
  const QuantSource s(WeightFormat::kFp8, 136, 200, 1);  // 2 x 2 blocks
  const PackedMatrix m = s.Packed();
  for (uint32_t r = 0; r < 136; ++r) {
    for (uint32_t k = 0; k < 200; ++k) {
      const int code = Byte(&s.values[r * 200 + k]), e = code >> 3 & 15, f = code & 7;
      const double v = (code >> 7 ? -1 : 1) * (e == 0 ? std::ldexp(f, -9) : std::ldexp(8 + f, e - 10));
      ASSERT_EQ(WeightValue(m, r, k),
                static_cast<float>(v * static_cast<double>(Scale(s, r / 128 * 2 + k / 128))));
    }
  }
}

TEST(Weights, DequantizedRowsAndPackedPartsAgree) {
  for (WeightFormat format : AllFormats()) {
    const uint32_t unit = std::max(GranularityK(format), 128u), in = 3 * unit, out = 40;
    QuantSource s(format, out, in, 7);
    const PackedMatrix whole = s.Packed();
    WeightSource part = s.source;
    part.first_row = 1;
    part.row_step = 2;
    part.row_count = 18;
    part.first_k = unit;
    part.count_k = unit;
    const PackedMatrix packed = Pack(part).value();
    std::vector<float> row(unit);
    ASSERT_EQ(packed.out, 18u);
    for (uint32_t r = 0; r < 18; ++r) {
      DequantizeRow(part, r, row.data());
      for (uint32_t k = 0; k < unit; ++k) {
        const float want = WeightValue(whole, 1 + 2 * r, unit + k);
        ASSERT_TRUE(SameBits({&row[k], 1}, {&want, 1})) << WeightFormatName(format);
        ASSERT_EQ(WeightValue(packed, r, k), want) << WeightFormatName(format);
      }
    }
    // Piece by piece, rows in an order of the caller's.
    std::vector<uint32_t> map(out);
    for (uint32_t r = 0; r < out; ++r) map[r] = (r * 7 + 3) % out;
    WeightSource piece = s.source;
    PackedMatrix pieces = AllocatePacked(piece, out).value();
    for (uint32_t at : {0u, 16u, 32u}) {
      piece.row_map = std::span(map).subspan(at, std::min(16u, out - at));
      ASSERT_TRUE(PackInto(piece, at, &pieces).ok());
    }
    for (uint32_t r = 0; r < out; ++r)
      ASSERT_EQ(WeightValue(pieces, r, in - 1), WeightValue(whole, map[r], in - 1));
  }
}

TEST(Weights, AWidenedRowIsTheValuesOneByOne) {
  for (WeightFormat format : AllFormats()) {
    // A ragged end where the format allows one.
    const uint32_t granularity = GranularityK(format), in = granularity == 1 ? 389 : 3 * granularity;
    const QuantSource s(format, 37, in, 9);
    const PackedMatrix m = s.Packed();
    std::vector<float> row(in), want(in);
    for (uint32_t r = 0; r < 37; ++r) {
      for (uint32_t k = 0; k < in; ++k) want[k] = WeightValue(m, r, k);
      WidenRow(m, r, row.data());
      ASSERT_TRUE(SameBits(row, want)) << WeightFormatName(format) << " row " << r;
    }
  }
}

TEST(Weights, TransposedTensorsArePackedAsTheirRows) {
  const QuantSource s(WeightFormat::kBf16, 30, 20, 1);
  WeightSource t = s.source;
  t.layout = L::kTransposed;
  t.out = 20;
  t.in = 30;
  const PackedMatrix rows = s.Packed(), columns = Pack(t).value();
  for (uint32_t r = 0; r < 20; ++r) {
    for (uint32_t k = 0; k < 30; ++k) ASSERT_EQ(WeightValue(columns, r, k), WeightValue(rows, k, r));
  }
}

TEST(Weights, MemoryIsZeroedAndAlignedOfAnySize) {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{100}, (size_t{2} << 20) - 1, size_t{2} << 20,
                       (size_t{5} << 20) + 4097}) {
    for (bool fresh : {false, true}) {
      const AlignedBytes p = fresh ? AllocateFresh(bytes) : AllocateAligned(bytes);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(p.get()) % 64, 0u) << bytes;
      EXPECT_TRUE(std::all_of(p.get(), p.get() + bytes, [](std::byte b) { return b == std::byte{0}; }))
          << bytes;
      std::fill_n(p.get(), bytes, std::byte{1});
    }
  }
}

TEST(Weights, PackedBytesStayNearTheFileBytes) {
  for (WeightFormat format : AllFormats()) {
    const QuantSource s(format, 64, 1024, 1);
    const size_t file = s.values.size() + s.scales.size() + s.zeros.size();
    EXPECT_LE(s.Packed().bytes(), file * 104 / 100) << WeightFormatName(format);
  }
}

TEST(Weights, WrongSourcesAreRefusedWithTheirSizes) {
  const auto refused = [](WeightSource s, std::string_view word) {
    const auto m = Pack(s);
    ASSERT_FALSE(m.ok()) << word;
    EXPECT_EQ(m.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(m.status().message()).find(word), std::string::npos) << m.status();
  };
  const QuantSource q4(WeightFormat::kInt4, 16, 128, 1, DType::kBf16, L::kCompressed);
  WeightSource s = q4.source;
  s.group = 48;
  refused(s, "groups of 48");
  s = q4.source;
  s.values = s.values.subspan(4);
  refused(s, "expected 1024 bytes of values, got 1020");
  s = q4.source;
  s.scale_type = DType::kI32;
  refused(s, "scales are");
  s = q4.source;
  s.first_k = 16;
  refused(s, "cut a group");
  s = q4.source;
  s.row_count = 17;
  refused(s, "rows ends beyond");
  s = q4.source;
  s.format = WeightFormat::kInt4Zero;
  refused(s, "zero points");
  QuantSource k(WeightFormat::kQ4K, 16, 256, 1);
  s = k.source;
  s.in = 128;
  refused(s, "multiple of 256");
  k.values[1] = std::byte{0x7C};  // d is infinite
  refused(k.source, "row 0");
  QuantSource fp8(WeightFormat::kFp8, 16, 128, 1);
  fp8.values[300] = std::byte{0xFF};
  refused(fp8.source, "fp8");
}

TEST(PackQuantized, HalvesAQuantisationStepAtMostAndMeasuresIt) {
  const QuantSource s(WeightFormat::kBf16, 33, 100, 1);
  for (const auto& [format, most] : {std::pair{WeightFormat::kInt8, 127.0}, {WeightFormat::kInt4, 7.0}}) {
    for (DType type : {DType::kF16, DType::kBf16, DType::kF32}) {
      QuantError error;
      const PackedMatrix m = PackQuantized(s.source, format, type, &error).value();
      double squared = 0, largest = 0;
      std::vector<float> row(100);
      for (uint32_t r = 0; r < 33; ++r) {
        DequantizeRow(s.source, r, row.data());
        for (uint32_t g = 0; g < 100; g += 32) {
          double amax = 0;
          for (uint32_t k = g; k < std::min(100u, g + 32); ++k)
            amax = std::max<double>(amax, std::abs(row[k]));
          for (uint32_t k = g; k < std::min(100u, g + 32); ++k) {
            const double off = std::abs(static_cast<double>(row[k]) - WeightValue(m, r, k));
            // Half a step, and what rounding the scale (2^-9 at worst, 2^-25 absolutely) takes from the ends.
            EXPECT_LE(off, amax / most * 0.5001 + amax * 0x1p-8 + most * 0x1p-25);
            squared += off * off;
            largest = std::max(largest, off);
          }
        }
      }
      EXPECT_NEAR(error.squared, squared, squared * 1e-9);
      EXPECT_EQ(error.largest, largest);
      EXPECT_LT(error.relative(), format == WeightFormat::kInt8 ? 0.02 : 0.2);
    }
  }
  QuantError error;
  EXPECT_FALSE(PackQuantized(s.source, WeightFormat::kQ4K, DType::kF16, &error).ok());
}

TEST(PackQuantized, ClampsWhereAScaleAmongTheDenormalsWasRoundedDown) {
  std::vector<float> w(16 * 32, 0x1p-24f);
  w[5] = 127 * 1.4f * 0x1p-24f;  // scale 1.4 * 2^-24, in f16 2^-24
  WeightSource s;
  s.format = WeightFormat::kF32;
  s.out = 16;
  s.in = 32;
  s.values = std::as_bytes(std::span<const float>(w));
  QuantError error;
  const PackedMatrix m = PackQuantized(s, WeightFormat::kInt8, DType::kF16, &error).value();
  EXPECT_EQ(WeightValue(m, 0, 5), 127 * 0x1p-24f);
  EXPECT_EQ(WeightValue(m, 0, 6), 0x1p-24f);
  w[7] = INFINITY;
  EXPECT_FALSE(PackQuantized(s, WeightFormat::kInt8, DType::kF16, &error).ok());
}

}  // namespace
}  // namespace consilium::kernels
