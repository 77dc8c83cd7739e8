#include "common/base/hash.h"

#include <gtest/gtest.h>

namespace consilium {
namespace {

TEST(Hash, Sha256EqualsThePublishedVectorInOnePieceAndInTwo) {
  const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  Sha256 whole;
  whole.Update("abc");
  EXPECT_EQ(Hex(whole.Finish()), abc);
  Sha256 parts;
  parts.Update("a");
  parts.Update("bc");
  EXPECT_EQ(Hex(parts.Finish()), abc);
}

TEST(Hash, Xxh3OfNothingEqualsThePublishedValue) { EXPECT_EQ(Xxh3({}), 0x2D06800538D394C2ull); }

TEST(Hash, MixDependsOnTheOrder) { EXPECT_NE(Mix(1, 2), Mix(2, 1)); }

}  // namespace
}  // namespace consilium
