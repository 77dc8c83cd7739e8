#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "common/base/status.h"
#include "common/http/http_server.h"
#include "services/cli/api_client.h"
#include "services/cli/bench.h"
#include "services/cli/chat.h"
#include "services/cli/http_client.h"
#include "services/cli/processes.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ParseUrlTest, TakesHostPortAndPath) {
  const auto url = ParseUrl("http://127.0.0.1:8080/t/x");
  ASSERT_TRUE(url.ok());
  EXPECT_EQ(url->host, "127.0.0.1");
  EXPECT_EQ(url->port, "8080");
  EXPECT_EQ(url->path, "/t/x");
  EXPECT_EQ(ParseUrl("http://h")->port, "80");
  EXPECT_EQ(ParseUrl("http://[::1]:9/")->host, "::1");
}

TEST(ParseUrlTest, RefusesWhatItCannotReach) {
  for (const char* bad : {"", "h:80", "https://h", "http://", "http://:80", "http://h:x", "http://h:"}) {
    EXPECT_THAT(Message(ParseUrl(bad).status()), HasSubstr("expected a URL")) << bad;
  }
}

TEST(SseReaderTest, EventsAreTheSameHoweverTheBytesAreCut) {
  const std::string text = "data: {\"a\":1}\n\ndata:x\r\n: comment\n\ndata: [DONE]\n\n";
  for (size_t step = 1; step <= text.size(); ++step) {
    SseReader reader;
    std::vector<std::string> events;
    for (size_t i = 0; i < text.size(); i += step) {
      reader.Feed(text.substr(i, step), [&](std::string_view d) { return events.emplace_back(d), true; });
    }
    EXPECT_THAT(events, ElementsAre("{\"a\":1}", "x", "[DONE]")) << "step " << step;
  }
}

TEST(SummariseTest, UsesTheNearestRank) {
  std::vector<double> samples;
  for (int i = 100; i >= 1; --i) samples.push_back(i);
  const Summary s = Summarise(samples);
  EXPECT_EQ(s.p50, 50);
  EXPECT_EQ(s.p99, 99);
  EXPECT_EQ(s.mean, 50.5);
  EXPECT_EQ(Summarise({}).p99, 0);
  EXPECT_EQ(Summarise({7}).p50, 7);
}

TEST(PrintableTest, ControlCharactersDoNotReachTheTerminal) {
  EXPECT_EQ(Printable("a\x1b[2J\n\tb\x7f\xc3\xa4"), "a?[2J\n\tb?\xc3\xa4");
}

TEST(ProcessesTest, TheTableReadsBackWhole) {
  const auto dir = std::filesystem::temp_directory_path() / ("cli_test_" + std::to_string(getpid()));
  std::filesystem::create_directory(dir);
  ProcessTable table;
  table.up_pid = getpid();
  table.url = "http://127.0.0.1:1";
  table.processes = {{"expert", "expert-0", 12, "127.0.0.1:2", "127.0.0.1:3", "ready"}};
  ASSERT_TRUE(WriteProcesses(dir, table).ok());
  const auto read = ReadProcesses(dir);
  ASSERT_TRUE(read.ok()) << ToString(read.status());
  EXPECT_EQ(ProcessesJson(read->processes), ProcessesJson(table.processes));
  EXPECT_EQ(read->url, table.url);
  EXPECT_EQ(read->processes[0].admin, "127.0.0.1:3");
  std::filesystem::remove_all(dir);
  EXPECT_THAT(Message(ReadProcesses(dir).status()), HasSubstr("processes.json"));
}

// A server whose answer to POST is given as pieces of a stream.
class ApiClientTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::string> Ask(int status, std::vector<std::string> pieces) {
    auto server = HttpServer::Start({}, [=](HttpRequest, std::shared_ptr<HttpResponder> responder) {
      if (status != 200) return responder->Respond(status, {{"Content-Type", "application/json"}}, pieces[0]);
      responder->StartStream(200, {{"Content-Type", "text/event-stream"}});
      for (const std::string& piece : pieces) responder->Write(piece);
      responder->End();
    });
    if (!server.ok()) return server.status();
    auto api = ApiClient::Open({"http://127.0.0.1:" + std::to_string((*server)->port()), "", "m", 10000});
    if (!api.ok()) return api.status();
    return (*api)->Chat({{"user", "hi"}}, {}, [](std::string_view) {});
  }
};

TEST_F(ApiClientTest, AnAnswerIsJoinedFromItsDeltas) {
  const auto text = Ask(
      200, {"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n", "\ndata: {\"choices\":[{\"delta\":{",
            "\"content\":\"b\"}}]}\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n"});
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  EXPECT_EQ(*text, "ab");
}

TEST_F(ApiClientTest, AnErrorShowsTheServersWords) {
  EXPECT_EQ(Message(Ask(404, {"{\"error\":{\"message\":\"no such model\"}}"}).status()),
            "HTTP 404: no such model");
  EXPECT_EQ(Message(Ask(200, {"data: {\"error\":{\"message\":\"shard lost\"}}\n\n"}).status()), "shard lost");
}

TEST_F(ApiClientTest, AStreamThatBreaksOffIsAnError) {
  EXPECT_THAT(Message(Ask(200, {"data: {\"choices\":[]}\n\n"}).status()), HasSubstr("[DONE]"));
}

TEST(HttpClientTest, NoServerIsUnavailableAndNamesTheAddress) {
  std::string url;
  {
    auto server = HttpServer::Start({}, [](HttpRequest, std::shared_ptr<HttpResponder>) {});
    ASSERT_TRUE(server.ok());
    url = "http://127.0.0.1:" + std::to_string((*server)->port());
  }
  const auto answer = HttpGet(url + "/", 2000);
  EXPECT_THAT(Message(answer.status()), HasSubstr(url));
}

}  // namespace
}  // namespace consilium
