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

TEST(Hash, Xxh3OfPiecesEqualsXxh3OfAll) {
  std::vector<std::byte> bytes(1000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(Mix(i, 7));
  Xxh3Stream stream;
  EXPECT_EQ(stream.value(), Xxh3({}));
  for (size_t at = 0, n = 1; at < bytes.size(); at += n, n = 2 * n + 1) {
    stream.Update(std::span<const std::byte>(bytes).subspan(at, std::min(n, bytes.size() - at)));
  }
  EXPECT_EQ(stream.value(), Xxh3(bytes));
}

TEST(Hash, Xxh3OfNothingEqualsThePublishedValue) { EXPECT_EQ(Xxh3({}), 0x2D06800538D394C2ull); }

TEST(Hash, MixDependsOnTheOrder) { EXPECT_NE(Mix(1, 2), Mix(2, 1)); }

}  // namespace
}  // namespace consilium
