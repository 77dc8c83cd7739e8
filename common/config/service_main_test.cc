#include "common/config/service_main.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "common/base/status.h"

namespace consilium {
namespace {

// RunService ends by signals to the process, so each case runs in a child.
class RunServiceTest : public ::testing::Test {
 protected:
  RunServiceTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(RunServiceTest, AFatalErrorIsOneLineAndCodeOne) {
  EXPECT_EXIT(std::exit(RunService("svc",
                                   []() -> absl::StatusOr<std::function<void()>> {
                                     return Unavailable("port 80 is busy\nreally");
                                   })),
              ::testing::ExitedWithCode(1), "^svc: port 80 is busy really\n$");
}

TEST_F(RunServiceTest, SigtermStopsGracefullyWithCodeZero) {
  EXPECT_EXIT(std::exit(RunService("svc",
                                   []() -> absl::StatusOr<std::function<void()>> {
                                     kill(getpid(), SIGTERM);  // blocked, so it stays until the wait
                                     return std::function<void()>([] { std::fputs("stopped\n", stderr); });
                                   })),
              ::testing::ExitedWithCode(0), "^stopped\n$");
}

TEST_F(RunServiceTest, RequestStopWithAnErrorGivesCodeOneAfterTheStop) {
  EXPECT_EXIT(
      {
        std::thread late;
        const int code = RunService("svc", [&late]() -> absl::StatusOr<std::function<void()>> {
          late = std::thread([] { RequestStop(Internal("the store is gone")); });
          return std::function<void()>([&late] {
            late.join();
            std::fputs("stopped\n", stderr);
          });
        });
        std::exit(code);
      },
      ::testing::ExitedWithCode(1), "^stopped\nsvc: the store is gone\n$");
}

TEST(PortFile, HoldsTheBoundAddressesAndNothingBeside) {
  const auto dir = std::filesystem::temp_directory_path() / ("port_file_test_" + std::to_string(getpid()));
  std::filesystem::create_directory(dir);
  const std::string path = dir / "ports";
  ASSERT_TRUE(WritePortFile(path, "127.0.0.1:5000", "127.0.0.1:5001").ok());
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_EQ(text.str(), "listen 127.0.0.1:5000\nadmin 127.0.0.1:5001\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
  std::filesystem::remove_all(dir);
}

TEST(PortFile, AnUnwritablePathIsAnErrorThatNamesIt) {
  const absl::Status status = WritePortFile("/no/such/dir/ports", "a:1", "");
  EXPECT_EQ(Message(status), "--port-file: cannot write /no/such/dir/ports: No such file or directory");
  EXPECT_TRUE(WritePortFile("", "a:1", "").ok());
}

}  // namespace
}  // namespace consilium
