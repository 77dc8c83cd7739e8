#include "common/base/philox.h"

#include <gtest/gtest.h>

namespace consilium {
namespace {

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
TEST(Philox, EqualsThePublishedVectors) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformLiesInTheHalfOpenUnitIntervalAndFillsIt) {
  double low = 1, high = 0, sum = 0;
  for (uint32_t position = 0; position < 10000; ++position) {
    const double u = PhiloxUniform(42, 0, position);
    low = std::min(low, u);
    high = std::max(high, u);
    sum += u;
  }
  EXPECT_GE(low, 0.0);
  EXPECT_LT(high, 1.0);
  EXPECT_LT(low, 0.01);
  EXPECT_GT(high, 0.99);
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
}

TEST(Philox, SeedChoiceAndPositionEachChangeTheDraw) {
  const double u = PhiloxUniform(1, 2, 3);
  EXPECT_EQ(u, PhiloxUniform(1, 2, 3));
  EXPECT_NE(u, PhiloxUniform(uint64_t{1} << 32 | 1, 2, 3));
  EXPECT_NE(u, PhiloxUniform(1, 3, 3));
  EXPECT_NE(u, PhiloxUniform(1, 2, 4));
}

}  // namespace
}  // namespace consilium
