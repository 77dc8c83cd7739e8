#include "common/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/base/philox.h"
#include "common/base/status.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;

std::string File(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  const uint64_t n = header.size();
  std::memcpy(out.data(), &n, 8);
  return out + header + std::string(data_bytes, 'x');
}
absl::StatusOr<std::vector<TensorInfo>> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), file.size(), 0, "f");
}
std::string Error(const std::string& file) { return ToString(Parse(file).status()); }

TEST(Safetensors, GivesRangesInOrderOfOffset) {
  const auto tensors =
      Parse(File(R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
                 16));
  ASSERT_TRUE(tensors.ok()) << ToString(tensors.status());
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[1].name, "b");
  EXPECT_EQ((*tensors)[1].range.offset - (*tensors)[0].range.offset, 4u);
  EXPECT_EQ((*tensors)[1].range.length, 12u);
}

TEST(Safetensors, RefusesWhatIsNotWellFormed) {
  EXPECT_THAT(Error(""), HasSubstr("too short for safetensors"));
  EXPECT_THAT(Error("1234567"), HasSubstr("too short for safetensors"));
  EXPECT_THAT(Error(std::string(8, '\xff')),
              HasSubstr("header length 18446744073709551615; expected at most 100000000"));
  EXPECT_THAT(Error(File("{}", 0).substr(0, 9)),
              HasSubstr("truncated: the header says 2 bytes, the file has 1"));
  EXPECT_THAT(Error(File("{,}", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(Error(File("[]", 0)), HasSubstr("expected an object"));
  EXPECT_THAT(Error(File(R"({"a":1})", 0)), HasSubstr("tensor \"a\": expected an object"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F32","shape":[1]}})", 4)),
              HasSubstr("expected dtype (text), shape"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}})", 4)),
              HasSubstr("dtype \"F7\" is not supported"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4)),
              HasSubstr("expected whole numbers, got -1"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4)),
              HasSubstr("data_offsets [4, 0]"));
}

TEST(Safetensors, RefusesSizesThatDoNotFit) {
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4)),
              HasSubstr("F32 [2] is 8 bytes, data_offsets span 4"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4)),
              HasSubstr("the file has 4 data bytes"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0)),
              HasSubstr("more than 2^64 bytes"));
  EXPECT_THAT(Error(File(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1)),
              HasSubstr("more than 8 dimensions"));
}

TEST(Safetensors, TensorsMustTileTheFile) {
  const char* two =
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[%d,%d]},"b":{"dtype":"U8","shape":[4],"data_offsets":[%d,%d]}})";
  const auto file = [&](int a, int b, int bytes) {
    char header[300];
    std::snprintf(header, sizeof header, two, a, a + 4, b, b + 4);
    return File(header, static_cast<size_t>(bytes));
  };
  EXPECT_TRUE(Parse(file(0, 4, 8)).ok());
  EXPECT_THAT(Error(file(0, 5, 9)), HasSubstr("tile"));                 // gap
  EXPECT_THAT(Error(file(0, 3, 7)), HasSubstr("tile"));                 // overlap
  EXPECT_THAT(Error(file(0, 0, 8)), HasSubstr("tile"));                 // twice the same
  EXPECT_THAT(Error(file(0, 4, 9)), HasSubstr("tensors end at byte"));  // bytes behind
  EXPECT_THAT(
      Error(File(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2)),
      HasSubstr("\"a\" comes twice"));
}

TEST(Safetensors, EveryDamagedByteIsAnErrorOrAnotherValidFile) {
  const std::string good = File(R"({"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}})", 12);
  for (uint32_t round = 0; round < 4000; ++round) {
    std::string bad = good;
    for (uint32_t k = 0; k < 1 + round % 3; ++k) {
      const auto at = static_cast<size_t>(PhiloxUniform(7, k, round) * static_cast<double>(bad.size()));
      bad[at] = static_cast<char>(PhiloxUniform(8, k, round) * 256);
    }
    bad.resize(static_cast<size_t>(PhiloxUniform(9, 0, round) * 2 * static_cast<double>(good.size())) %
                   (good.size() + 1) +
               round % 2);
    const auto parsed = Parse(bad);
    EXPECT_TRUE(parsed.ok() || !Message(parsed.status()).empty());
  }
}

}  // namespace
}  // namespace consilium
