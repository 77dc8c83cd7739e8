// Random matrices of every format for the kernel tests, with the bytes they came from.
#pragma once
#include <random>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "kernels/api/test_support.h"

namespace consilium::kernels {

inline uint16_t TestF16(
    std::mt19937_64& rng) {  // about 2^-10 .. 2^-3, both signs, now and then a denormal or 0
  if (rng() % 31 == 0) return static_cast<uint16_t>(rng() % 3);
  return static_cast<uint16_t>((5 + rng() % 7) << 10 | (rng() & 0x83FF));
}

// Bytes of a source of `format`; the spans of `source` point into the vectors.
struct QuantSource {
  std::vector<std::byte> values, scales, zeros;
  WeightSource source;

  QuantSource(WeightFormat format, uint32_t out, uint32_t in, uint64_t seed, DType scale_type = DType::kF16,
              WeightSource::Layout layout = WeightSource::Layout::kGguf, uint32_t group = 32) {
    std::mt19937_64 rng(seed);
    using L = WeightSource::Layout;
    WeightSource& s = source;
    s.format = format;
    s.out = out;
    s.in = in;
    s.scale_type = scale_type;
    s.group = group;
    const auto fill = [&](std::vector<std::byte>* v, size_t n) {
      v->resize(n);
      for (std::byte& b : *v) b = static_cast<std::byte>(rng());
    };
    const size_t groups = (in + group - 1) / group;
    s.layout = layout;
    if (format <= WeightFormat::kF16) {
      s.layout = L::kPlain;
      for (float f : TestFloats(size_t{out} * in, seed)) {
        uint32_t bits = __builtin_bit_cast(uint32_t, f);
        if (format == WeightFormat::kBf16) bits >>= 16;
        if (format == WeightFormat::kF16) bits = TestF16(rng);
        for (int i = 0; i < (format == WeightFormat::kF32 ? 4 : 2); ++i) {
          values.push_back(static_cast<std::byte>(bits >> (8 * i)));
        }
      }
    } else if (format == WeightFormat::kFp8) {
      s.layout = L::kPlain;
      s.group = 128;
      s.scale_type = DType::kF32;
      fill(&values, size_t{out} * in);
      for (std::byte& b : values) {
        if ((b & std::byte{0x7F}) == std::byte{0x7F}) b = std::byte{0x08};
      }
      Scales(rng, (out + 127) / 128 * ((in + 127) / 128));
    } else if (format <= WeightFormat::kInt4Zero) {
      if (layout != L::kPlain && layout != L::kWords) s.layout = L::kCompressed;
      const size_t per_word = format == WeightFormat::kInt8 ? 4 : 8;
      fill(&values, s.layout == L::kPlain ? size_t{out} * in : out * ((in + per_word - 1) / per_word) * 4);
      Scales(rng, out * groups);
      if (format == WeightFormat::kInt4Zero) fill(&zeros, (out + 7) / 8 * groups * 4);
    } else if (layout == L::kGptOss) {
      fill(&values, size_t{out} * in / 2);
      for (size_t i = 0; i < size_t{out} * in / 32; ++i) scales.push_back(Exponent(rng));
    } else {
      Gguf(rng);
    }
    s.values = values;
    s.scales = scales;
    s.zeros = zeros;
  }
  PackedMatrix Packed() const {
    absl::StatusOr<PackedMatrix> m = Pack(source);
    CHECK_MSG(m.ok(), std::string(m.status().message()));
    return *std::move(m);
  }

 private:
  static std::byte Exponent(std::mt19937_64& rng) {
    return static_cast<std::byte>(rng() % 37 == 0 ? rng() % 3 : 115 + rng() % 12);
  }
  void Scales(std::mt19937_64& rng, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      const uint16_t half = TestF16(rng);
      uint32_t bits = half;
      const float value = (static_cast<float>(static_cast<int>(rng() % 2001) - 1000) + 0.37f) * 1.3e-5f;
      if (source.scale_type == DType::kF32) bits = __builtin_bit_cast(uint32_t, value);
      if (source.scale_type == DType::kBf16) bits = __builtin_bit_cast(uint32_t, value) >> 16;
      for (size_t b = 0; b < DTypeBytes(source.scale_type); ++b)
        scales.push_back(static_cast<std::byte>(bits >> (8 * b)));
    }
  }
  void Gguf(std::mt19937_64& rng) {
    struct Kind {
      size_t inputs, bytes;
      std::vector<size_t> halves;  // where f16 lie
    };
    const auto kind = [&]() -> Kind {
      switch (source.format) {
        case WeightFormat::kMxfp4:
          return {32, 17, {}};
        case WeightFormat::kQ8_0:
          return {32, 34, {0}};
        case WeightFormat::kQ4_0:
          return {32, 18, {0}};
        case WeightFormat::kQ4_1:
          return {32, 20, {0, 2}};
        case WeightFormat::kQ5_0:
          return {32, 22, {0}};
        case WeightFormat::kQ5_1:
          return {32, 24, {0, 2}};
        case WeightFormat::kQ4K:
          return {256, 144, {0, 2}};
        case WeightFormat::kQ5K:
          return {256, 176, {0, 2}};
        case WeightFormat::kIq4Nl:
          return {32, 18, {0}};
        case WeightFormat::kIq4Xs:
          return {256, 136, {0}};
        case WeightFormat::kQ2K:
          return {256, 84, {80, 82}};
        case WeightFormat::kQ3K:
          return {256, 110, {108}};
        default:
          return {256, 210, {208}};
      }
    }();
    for (size_t i = 0; i < size_t{source.out} * source.in / kind.inputs; ++i) {
      const size_t at = values.size();
      for (size_t b = 0; b < kind.bytes; ++b) values.push_back(static_cast<std::byte>(rng()));
      for (size_t h : kind.halves) {
        const uint16_t v = TestF16(rng);
        std::memcpy(&values[at + h], &v, 2);
      }
      if (kind.halves.empty()) values[at] = Exponent(rng);
    }
  }
};

inline std::vector<WeightFormat> AllFormats() {
  std::vector<WeightFormat> all;
  for (int f = 0; f <= static_cast<int>(kWeightFormatLast); ++f) all.push_back(static_cast<WeightFormat>(f));
  return all;
}
inline std::vector<WeightFormat> IntegerFormats() {
  std::vector<WeightFormat> all;
  for (WeightFormat f : AllFormats()) {
    if (IsIntegerFormat(f)) all.push_back(f);
  }
  return all;
}
// Sizes the format allows: tails of groups where they may be.
inline std::vector<uint32_t> InputSizes(WeightFormat f) {
  if (GranularityK(f) == 256) return {256, 768};
  if (GranularityK(f) == 32) return {32, 96, 288};
  return {1, 7, 31, 33, 64, 100, 130, 257};
}

}  // namespace consilium::kernels
