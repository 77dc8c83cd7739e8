#include "common/config/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Parses one set of options and keeps what was printed.
class OptionsTest : public ::testing::Test {
 protected:
  OptionsTest() : options_("prog", "does things") {
    options_.Add(&text_, "text,t", "a text");
    options_.Add(&list_, "list", "a list");
    options_.Add(&flag_, "flag", "a switch");
    options_.Add(&on_, "prefix-cache", "on by default");
    options_.Add(&number_, "number", "rows", int64_t{-5}, int64_t{10});
    options_.Add(&count_, "kv-mb", "MiB of KV", 1u, 4096u);
    options_.Add(&ratio_, "ratio", "share", 0.0, 1.0);
    options_.AddChoice(&ops_, "ops", "kernels", {"auto", "scalar", "avx2"});
  }
  ~OptionsTest() override {
    for (const std::string& name : set_) unsetenv(name.c_str());
    if (!file_.empty()) std::filesystem::remove(file_);
  }

  void Env(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    set_.push_back(name);
  }
  std::string File(const std::string& text) {
    file_ = std::filesystem::temp_directory_path() / ("options_test_" + std::to_string(getpid()) + ".toml");
    std::ofstream(file_) << text;
    return file_;
  }
  std::optional<int> Parse(std::vector<const char*> args) {
    args.insert(args.begin(), "prog");
    testing::internal::CaptureStderr();
    testing::internal::CaptureStdout();
    const auto result = options_.Parse(static_cast<int>(args.size()), args.data());
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return result;
  }
  void ExpectError(const std::vector<const char*>& args, const std::string& line) {
    EXPECT_EQ(Parse(args), 2);
    EXPECT_EQ(err_, "prog: " + line + "\n");
    EXPECT_EQ(out_, "");
  }

  std::string text_ = "default";
  std::vector<std::string> list_;
  bool flag_ = false;
  bool on_ = true;
  int64_t number_ = 1;
  uint32_t count_ = 64;
  double ratio_ = 0.5;
  std::string ops_ = "auto";
  Options options_;
  std::string out_, err_;
  std::vector<std::string> set_;
  std::string file_;
};

TEST_F(OptionsTest, DefaultsStayWhenNothingIsGiven) {
  EXPECT_EQ(Parse({}), std::nullopt);
  EXPECT_EQ(text_, "default");
  EXPECT_EQ(count_, 64u);
  EXPECT_TRUE(on_);
  EXPECT_FALSE(flag_);
}

TEST_F(OptionsTest, FlagsAreReadInBothForms) {
  EXPECT_EQ(Parse({"--text=a b", "--number", "-5", "--kv-mb", "4096", "--ratio", "0.25", "--ops", "avx2",
                   "--flag", "--no-prefix-cache", "--list", "a,b", "--list", "c"}),
            std::nullopt);
  EXPECT_EQ(text_, "a b");
  EXPECT_EQ(number_, -5);
  EXPECT_EQ(count_, 4096u);
  EXPECT_EQ(ratio_, 0.25);
  EXPECT_EQ(ops_, "avx2");
  EXPECT_TRUE(flag_);
  EXPECT_FALSE(on_);
  EXPECT_THAT(list_, ElementsAre("a", "b", "c"));
}

TEST_F(OptionsTest, AShortFlagIsTheSameOption) {
  EXPECT_EQ(Parse({"-t", "short"}), std::nullopt);
  EXPECT_EQ(text_, "short");
}

TEST_F(OptionsTest, TheLastOfARepeatedFlagWins) {
  EXPECT_EQ(Parse({"--number", "2", "--number", "3", "--prefix-cache", "--prefix-cache=false"}),
            std::nullopt);
  EXPECT_EQ(number_, 3);
  EXPECT_FALSE(on_);
}

TEST_F(OptionsTest, FlagWinsOverEnvironmentOverFileOverDefault) {
  const std::string file =
      File("text = \"file\"\nnumber = 2\nkv-mb = 5\nflag = true\nlist = [\"x\", \"y\"]\n");
  Env("CONSILIUM_NUMBER", "3");
  Env("CONSILIUM_KV_MB", "6");
  EXPECT_EQ(Parse({"--config", file.c_str(), "--kv-mb", "7"}), std::nullopt);
  EXPECT_EQ(text_, "file");
  EXPECT_EQ(number_, 3);
  EXPECT_EQ(count_, 7u);
  EXPECT_TRUE(flag_);
  EXPECT_EQ(ratio_, 0.5);
  EXPECT_THAT(list_, ElementsAre("x", "y"));
}

TEST_F(OptionsTest, ABadValueSaysWhichExpectedAndGot) {
  ExpectError({"--number", "11"}, "--number: expected an integer in -5..10, got \"11\"");
  ExpectError({"--number", "3x"}, "--number: expected an integer in -5..10, got \"3x\"");
  ExpectError({"--kv-mb", "-1"}, "--kv-mb: expected an integer in 1..4096, got \"-1\"");
  ExpectError({"--ratio", "nan"}, "--ratio: expected a number in 0..1, got \"nan\"");
  ExpectError({"--ops", "sse"}, "--ops: expected one of auto|scalar|avx2, got \"sse\"");
  ExpectError({"--flag=maybe"}, "--flag: expected true or false, got \"maybe\"");
  ExpectError({"--nope"}, "unknown argument \"--nope\"; see --help");
  ExpectError({"extra"}, "unknown argument \"extra\"; see --help");
}

TEST_F(OptionsTest, AFlagWithoutItsValueIsOneLine) {
  EXPECT_EQ(Parse({"--number"}), 2);
  EXPECT_THAT(err_, HasSubstr("--number"));
  EXPECT_EQ(std::count(err_.begin(), err_.end(), '\n'), 1);
}

TEST_F(OptionsTest, ABadEnvironmentValueNamesTheVariable) {
  Env("CONSILIUM_KV_MB", "many");
  ExpectError({},
              "--kv-mb: expected an integer in 1..4096, got \"many\" (in the environment, CONSILIUM_KV_MB)");
}

TEST_F(OptionsTest, AnUnknownKeyOrMissingFileIsAnError) {
  const std::string file = File("kvmb = 3\n");
  ExpectError({"--config", file.c_str()}, file + ": unknown key \"kvmb\"; see --help for the names");
  ExpectError({"--config", "/no/such/file"},
              "--config: cannot read \"/no/such/file\": No such file or directory");
}

TEST_F(OptionsTest, ARequiredOptionMustBeGivenByAnyWay) {
  options_.Required("text");
  ExpectError({}, "--text: required, but not given; see --help");
  ExpectError({"--ops", "sse"}, "--ops: expected one of auto|scalar|avx2, got \"sse\"");
  Env("CONSILIUM_TEXT", "env");
  EXPECT_EQ(Parse({}), std::nullopt);
}

TEST_F(OptionsTest, HelpShowsDefaultsAndRangesAndEndsWithZero) {
  EXPECT_EQ(Parse({"--help"}), 0);
  EXPECT_THAT(out_, HasSubstr("--kv-mb"));
  EXPECT_THAT(out_, HasSubstr("1..4096"));
  EXPECT_THAT(out_, HasSubstr("64"));
  EXPECT_EQ(err_, "");
}

TEST_F(OptionsTest, VersionIsPrintedOnce) {
  EXPECT_EQ(Parse({"--version"}), 0);
  EXPECT_EQ(out_, std::string("prog ") + CONSILIUM_VERSION + "\n");
}

TEST(OptionsCommands, EachCommandHasItsOwnOptions) {
  Options options("tool", "d");
  std::string dir;
  uint32_t port = 1;
  Options* up = options.AddCommand("up", "starts");
  up->Add(&port, "port", "p", 0u, 65535u);
  Options* inspect = options.AddCommand("inspect", "shows");
  inspect->AddPositional(&dir, "DIR", "folder", true);
  const char* args[] = {"tool", "inspect", "models/x"};
  EXPECT_EQ(options.Parse(3, args), std::nullopt);
  EXPECT_EQ(options.chosen_command(), "inspect");
  EXPECT_EQ(dir, "models/x");
  const char* up_args[] = {"tool", "up", "--port", "99"};
  EXPECT_EQ(options.Parse(4, up_args), std::nullopt);
  EXPECT_EQ(options.chosen_command(), "up");
  EXPECT_EQ(port, 99u);
}

TEST(OptionsCommands, NoOrUnknownCommandOrMissingPositionalIsAnError) {
  Options options("tool", "d");
  std::string dir;
  options.AddCommand("inspect", "shows")->AddPositional(&dir, "DIR", "folder", true);
  const auto error_of = [&](std::vector<const char*> args) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(options.Parse(static_cast<int>(args.size()), args.data()), 2);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(error_of({"tool"}), "tool: expected a command (inspect), got none; see --help\n");
  EXPECT_EQ(error_of({"tool", "inspekt"}), "tool: unknown argument \"inspekt\"; see --help\n");
  EXPECT_EQ(error_of({"tool", "inspect"}), "tool inspect: DIR: required, but not given; see --help\n");
}

TEST(ServiceOptionsTest, AreAddedAndChecked) {
  Options options("svc", "d");
  ServiceOptions service;
  service.AddTo(&options);
  const char* args[] = {"svc", "--admin", "127.0.0.1:7", "--log-format", "json", "--log-level", "warn"};
  EXPECT_EQ(options.Parse(7, args), std::nullopt);
  EXPECT_EQ(service.admin, "127.0.0.1:7");
  EXPECT_EQ(service.log_format, "json");
  EXPECT_EQ(service.log_level, "warn");
}

TEST(HostPortTest, ReadsHostsAndBracketedAddresses) {
  HostPort hp;
  ASSERT_TRUE(ParseHostPort("127.0.0.1:80", &hp));
  EXPECT_EQ(hp.host, "127.0.0.1");
  EXPECT_EQ(hp.port, 80);
  ASSERT_TRUE(ParseHostPort("[::1]:65535", &hp));
  EXPECT_EQ(hp.host, "::1");
  EXPECT_EQ(hp.port, 65535);
  ASSERT_TRUE(ParseHostPort("host:0", &hp));
  EXPECT_EQ(hp.port, 0);
}

TEST(HostPortTest, RefusesWhatIsNotHostAndPort) {
  HostPort hp;
  for (const char* bad : {"", "host", ":80", "host:", "host:65536", "host:-1", "host:8a", "::1:80", "[::1]80",
                          "[::1", "h:000080"}) {
    EXPECT_FALSE(ParseHostPort(bad, &hp)) << bad;
  }
}

}  // namespace
}  // namespace consilium
