#include "common/log/log.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

namespace consilium::log {
namespace {

constexpr int64_t kTime = 1'700'000'000'123'456;  // 2023-11-14T22:13:20.123456Z

TEST(LogLine, TextHasTimeLevelServiceMessageAndFields) {
  EXPECT_EQ(
      FormatLine(Format::kText, kTime, Level::kWarn, "gateway", "slow answer",
                 {{"request_id", "r-1"}, {"ms", 12}, {"share", 0.5}, {"stream", true}}),
      "2023-11-14T22:13:20.123456Z WARN  gateway: slow answer request_id=r-1 ms=12 share=0.5 stream=true");
}

TEST(LogLine, TextQuotesWhatWouldNotReadBackAsOneWord) {
  EXPECT_EQ(
      FormatLine(Format::kText, 0, Level::kInfo, "s", "m", {{"a", "two words"}, {"b", ""}, {"c", "x=\"y\""}}),
      "1970-01-01T00:00:00.000000Z INFO  s: m a=\"two words\" b=\"\" c=\"x=\\\"y\\\"\"");
}

TEST(LogLine, OneEventIsOneLineWhateverTheTextHolds) {
  for (const Format format : {Format::kText, Format::kJson}) {
    const std::string line = FormatLine(format, 0, Level::kError, "s", "a\nb", {{"k", "c\r\nd"}});
    EXPECT_EQ(line.find_first_of("\r\n"), std::string::npos) << line;
  }
}

TEST(LogLine, JsonReadsBackWithTypes) {
  const std::string line =
      FormatLine(Format::kJson, kTime, Level::kDebug, "expert", "q\"uote",
                 {{"n", -3}, {"big", ~uint64_t{0}}, {"b", false}, {"d", 0.1}, {"s", "tab\t"}});
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["level"], "debug");
  EXPECT_EQ(json["service"], "expert");
  EXPECT_EQ(json["message"], "q\"uote");
  EXPECT_EQ(json["n"], -3);
  EXPECT_EQ(json["big"], ~uint64_t{0});
  EXPECT_EQ(json["b"], false);
  EXPECT_EQ(json["d"], 0.1);
  EXPECT_EQ(json["s"], "tab\t");
}

TEST(LogLine, JsonStaysValidWithBrokenUtf8AndNonFiniteNumbers) {
  const std::string line = FormatLine(
      Format::kJson, 0, Level::kInfo, "s", "\xff\xc3(\xed\xa0\x80 \xc3\xa4",
      {{"nan", std::numeric_limits<double>::quiet_NaN()}, {"inf", -std::numeric_limits<double>::infinity()}});
  const auto json = nlohmann::json::parse(line);  // throws on bad UTF-8
  EXPECT_EQ(json["nan"], "nan");
  EXPECT_EQ(json["inf"], "-inf");
  EXPECT_NE(std::string(json["message"]).find("\xc3\xa4"), std::string::npos);
}

TEST(Log, WritesWholeLinesFromManyThreadsAndFiltersByLevel) {
  Configure("test", Level::kInfo, Format::kJson);
  testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 50; ++i) Info("line", {{"thread", t}, {"i", i}});
      Debug("hidden");
    });
  }
  for (auto& thread : threads) thread.join();
  const std::string text = testing::internal::GetCapturedStderr();
  size_t lines = 0;
  for (size_t begin = 0; begin < text.size(); ++lines) {
    const size_t end = text.find('\n', begin);
    ASSERT_NE(end, std::string::npos);
    EXPECT_EQ(nlohmann::json::parse(text.substr(begin, end - begin))["message"], "line");
    begin = end + 1;
  }
  EXPECT_EQ(lines, 200u);
}

// Last: the file stays for the rest of the process.
TEST(LogToFile, AppendsThereAndSaysWhenItCannot) {
  EXPECT_FALSE(WriteTo("/nonexistent-folder/x.log"));
  const std::string path = testing::TempDir() + "/log_test.log";
  std::remove(path.c_str());
  Configure("test", Level::kInfo, Format::kText);
  ASSERT_TRUE(WriteTo(path));
  Info("into the file");
  std::ifstream in(path);
  std::string line;
  ASSERT_TRUE(std::getline(in, line));
  EXPECT_NE(line.find("into the file"), std::string::npos);
}

}  // namespace
}  // namespace consilium::log
