#include "common/metrics/admin_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>

#include "common/base/status.h"
#include "common/config/options.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// The whole answer to one request, read until the server closes.
std::string Fetch(const std::string& address, const std::string& method, const std::string& path) {
  HostPort peer;
  EXPECT_TRUE(ParseHostPort(address, &peer)) << address;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(peer.port);
  inet_pton(AF_INET, peer.host.c_str(), &to.sin_addr);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  const std::string request = method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, static_cast<size_t>(n));
  close(fd);
  return answer;
}

TEST(AdminServerTest, AnswersHealthReadinessAndMetrics) {
  Metrics metrics;
  std::atomic<bool> ready{false};
  auto server = AdminServer::Start(
      "127.0.0.1:0", &metrics, [&] { return ready ? std::string() : std::string("2 of 3 shards"); },
      [&] { metrics.Gauge("consilium_set_before_scrape", "h").Set(5); });
  ASSERT_TRUE(server.ok()) << ToString(server.status());
  const std::string address = (*server)->address();
  EXPECT_THAT(Fetch(address, "GET", "/healthz"), StartsWith("HTTP/1.1 200"));
  const std::string waiting = Fetch(address, "GET", "/readyz");
  EXPECT_THAT(waiting, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(waiting, HasSubstr("2 of 3 shards"));
  ready = true;
  EXPECT_THAT(Fetch(address, "GET", "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Fetch(address, "GET", "/metrics"), HasSubstr("consilium_set_before_scrape 5\n"));
  EXPECT_THAT(Fetch(address, "GET", "/nothing"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Fetch(address, "POST", "/metrics"), StartsWith("HTTP/1.1 405"));
}

TEST(AdminServerTest, ABusyPortOrBadAddressIsAnErrorThatNamesIt) {
  Metrics metrics;
  auto first = AdminServer::Start("127.0.0.1:0", &metrics, nullptr);
  ASSERT_TRUE(first.ok()) << ToString(first.status());
  auto second = AdminServer::Start((*first)->address(), &metrics, nullptr);
  ASSERT_FALSE(second.ok());
  HostPort bound;
  ASSERT_TRUE(ParseHostPort((*first)->address(), &bound));
  EXPECT_THAT(Message(second.status()), HasSubstr(std::to_string(bound.port)));
  auto bad = AdminServer::Start("nonsense", &metrics, nullptr);
  EXPECT_EQ(Message(bad.status()), "--admin: expected host:port, got \"nonsense\"");
}

}  // namespace
}  // namespace consilium
