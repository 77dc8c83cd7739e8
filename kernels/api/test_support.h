// Inputs and comparisons shared by the kernel tests.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/api/kernels.h"

namespace consilium::kernels {

// Non-uniform values: mostly around 1, some large, some denormal, zeros of both signs.
inline std::vector<float> TestFloats(size_t n, uint64_t seed) {
  std::mt19937_64 rng(seed * 7919 + 13);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> v(n);
  for (float& x : v) {
    const uint64_t kind = rng() % 97;
    x = normal(rng);
    if (kind == 0) x = 0.0f;
    if (kind == 1) x = -0.0f;
    if (kind == 2) x *= 1e-41f;  // denormal
    if (kind == 3) x *= 1e4f;
  }
  return v;
}

inline std::vector<uint16_t> TestBf16(size_t n, uint64_t seed) {
  std::vector<uint16_t> v(n);
  const std::vector<float> wide = TestFloats(n, seed);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, wide[i]) >> 16);
  return v;
}

// Row-major weights and their packed form.
struct TestMatrix {
  std::vector<float> values;
  PackedMatrix packed;
  TestMatrix(DType dtype, uint32_t out, uint32_t in, uint64_t seed) {
    if (dtype == DType::kF32) {
      values = TestFloats(size_t{out} * in, seed);
      packed = PackF32(values, out, in);
    } else {
      const std::vector<uint16_t> half = TestBf16(size_t{out} * in, seed);
      for (uint16_t h : half) values.push_back(__builtin_bit_cast(float, static_cast<uint32_t>(h) << 16));
      packed = Pack(dtype, reinterpret_cast<const std::byte*>(half.data()), out, in);
    }
  }
};

// Equal in every bit; a NaN equals any NaN.
inline testing::AssertionResult SameBits(std::span<const float> got, std::span<const float> want) {
  if (got.size() != want.size())
    return testing::AssertionFailure() << got.size() << " values, want " << want.size();
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(want[i])) continue;
    if (std::memcmp(&got[i], &want[i], sizeof(float)) != 0) {
      return testing::AssertionFailure() << "at " << i << ": got " << got[i] << ", want " << want[i] << " ("
                                         << std::hexfloat << got[i] << ", " << want[i] << ")";
    }
  }
  return testing::AssertionSuccess();
}

inline const Ops& Ref() { return *FindOps("ref").value(); }

// One instance per table of this machine other than the reference.
class EveryTable : public testing::TestWithParam<std::string> {
 protected:
  const Ops& ops() const { return *FindOps(GetParam()).value(); }
};
inline std::vector<std::string> TablesUnderTest() {
  std::vector<std::string> names;
  for (std::string_view name : AvailableOps()) {
    if (name != "ref") names.emplace_back(name);
  }
  return names;
}
inline std::string TableName(const testing::TestParamInfo<std::string>& info) { return info.param; }

}  // namespace consilium::kernels
