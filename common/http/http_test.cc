#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "common/http/http_server.h"

namespace consilium {
namespace {

// A blocking client that sends bytes as given and reads until something is seen.
class Client {
 public:
  explicit Client(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Client() { Close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  Client& Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return *this;
  }
  // Reads until `mark` is in what was received since the last call; gives all up to and with it.
  std::string Until(std::string_view mark) {
    while (seen_.find(mark) == std::string::npos) {
      if (!Read()) return std::exchange(seen_, "");
    }
    const size_t end = seen_.find(mark) + mark.size();
    std::string out = seen_.substr(0, end);
    seen_.erase(0, end);
    return out;
  }
  std::string UntilClosed() {
    while (Read()) {
    }
    return std::exchange(seen_, "");
  }
  bool NothingToRead(int wait_ms) const {
    pollfd p{fd_, POLLIN, 0};
    return seen_.empty() && poll(&p, 1, wait_ms) == 0;
  }

 private:
  bool Read() {
    pollfd p{fd_, POLLIN, 0};
    if (poll(&p, 1, 20000) != 1) return false;
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    seen_.append(buffer, static_cast<size_t>(n));
    return true;
  }
  int fd_;
  std::string seen_;
};

// A server whose handler hands each request to the test.
class Http : public ::testing::Test {
 protected:
  struct Call {
    HttpRequest request;
    std::shared_ptr<HttpResponder> responder;
  };

  void Start(HttpServerOptions options = {}) {
    auto server =
        HttpServer::Start(std::move(options), [this](HttpRequest request, std::shared_ptr<HttpResponder> r) {
          if (request.path == "/echo") return r->Respond(200, {{"Content-Type", "text/plain"}}, request.body);
          std::lock_guard lock(mu_);
          calls_.push_back({std::move(request), std::move(r)});
          changed_.notify_all();
        });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
  }
  Call Next() {
    std::unique_lock lock(mu_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return !calls_.empty(); });
    EXPECT_FALSE(calls_.empty());
    Call call = std::move(calls_.front());
    calls_.erase(calls_.begin());
    return call;
  }
  std::vector<Call> Next(size_t n) {
    std::unique_lock lock(mu_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return calls_.size() >= n; }));
    return std::exchange(calls_, {});
  }

  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<Call> calls_;
  std::unique_ptr<HttpServer> server_;
};

const std::string kGet = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
std::string Echo(std::string_view body) {
  return "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         std::string(body);
}

TEST_F(Http, AnswersManyRequestsOnOneConnection) {
  Start();
  Client client(server_->port());
  for (int i = 0; i < 3; ++i) {
    const std::string body = "body" + std::to_string(i);
    EXPECT_NE(client.Send(Echo(body)).Until(body).find("HTTP/1.1 200 OK\r\n"), std::string::npos);
  }
  EXPECT_EQ(server_->open_connections(), 1u);
}

TEST_F(Http, AnswersRequestsSentWithoutWaitingInTheirOrder) {
  Start();
  Client client(server_->port());
  client.Send(Echo("one") + Echo("two") + Echo("three"));
  client.Until("one");
  client.Until("two");
  EXPECT_NE(client.Until("three").find("200 OK"), std::string::npos);
}

TEST_F(Http, HandsOverMethodPathQueryHeadersAndBody) {
  Start();
  Client client(server_->port());
  client.Send("PUT /a%20b/c?x=1&y HTTP/1.1\r\nHost: h\r\nX-Request-Id: r1\r\nContent-Length: 2\r\n\r\nhi");
  Call call = Next();
  EXPECT_EQ(call.request.method, "PUT");
  EXPECT_EQ(call.request.path, "/a b/c");
  EXPECT_EQ(call.request.query, "x=1&y");
  EXPECT_EQ(call.request.header("x-request-ID"), "r1");
  EXPECT_EQ(call.request.header("absent"), "");
  EXPECT_EQ(call.request.body, "hi");
  EXPECT_TRUE(call.request.peer.starts_with("127.0.0.1:"));
}

TEST_F(Http, StreamsChunksAsTheyAreWrittenAndThenTakesTheNextRequest) {
  Start();
  Client client(server_->port());
  client.Send(kGet);
  Call call = Next();
  call.responder->StartStream(200, {{"Content-Type", "text/event-stream"}});
  EXPECT_NE(client.Until("\r\n\r\n").find("Transfer-Encoding: chunked\r\n"), std::string::npos);
  call.responder->Write("hello");
  EXPECT_EQ(client.Until("hello\r\n"), "5\r\nhello\r\n");
  call.responder->Write(std::string(300, 'x'));
  EXPECT_EQ(client.Until("x\r\n"), "12c\r\n" + std::string(300, 'x') + "\r\n");
  call.responder->End();
  EXPECT_EQ(client.Until("0\r\n\r\n"), "0\r\n\r\n");
  EXPECT_NE(client.Send(Echo("next")).Until("next").find("200"), std::string::npos);
}

TEST_F(Http, TellsTheHandlerWhenTheClientGoesAway) {
  Start();
  std::promise<void> closed;
  Client client(server_->port());
  client.Send(kGet);
  Call call = Next();
  call.responder->StartStream(200, {});
  client.Until("\r\n\r\n");
  call.responder->OnClose([&] { closed.set_value(); });
  client.Close();
  ASSERT_EQ(closed.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_TRUE(call.responder->closed());
  call.responder->Write("ignored");
  call.responder->End();
  EXPECT_EQ(call.responder->pending_bytes(), 0u);
}

TEST_F(Http, CallsOnCloseAtOnceIfTheClientHasGoneAlready) {
  Start();
  Client client(server_->port());
  client.Send(kGet);
  Call call = Next();
  std::promise<void> first, second;
  call.responder->OnClose([&] { first.set_value(); });
  client.Close();
  first.get_future().wait();
  call.responder->OnClose([&] { second.set_value(); });
  EXPECT_EQ(second.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST_F(Http, DoesNotCallOnCloseAfterACompleteAnswer) {
  Start();
  Client client(server_->port());
  client.Send(kGet);
  Call call = Next();
  auto called = std::make_shared<std::atomic<bool>>(false);
  call.responder->OnClose([called] { *called = true; });
  call.responder->Respond(200, {}, "done");
  client.Until("done");
  client.Close();
  server_->Shutdown(5000);
  EXPECT_FALSE(*called);
}

TEST_F(Http, SendsA500WhenTheHandlerDropsTheRequest) {
  Start();
  Client client(server_->port());
  client.Send(kGet);
  Next();
  EXPECT_NE(client.Until("dropped").find("HTTP/1.1 500 "), std::string::npos);
}

TEST_F(Http, CutsAStreamThatIsDroppedHalfWay) {
  Start();
  Client client(server_->port());
  client.Send(kGet);
  {
    Call call = Next();
    call.responder->StartStream(200, {});
    call.responder->Write("half");
    client.Until("half");
  }
  EXPECT_EQ(client.UntilClosed().find("0\r\n\r\n"), std::string::npos);
}

TEST_F(Http, TakesABodyAtTheLimitAndRefusesOneByteMoreWith413) {
  HttpServerOptions options;
  options.body_bytes_max = 1000;
  options.on_error = [](int status, std::string_view text) {
    return std::pair<std::string, std::string>("application/json",
                                               std::to_string(status) + ":" + std::string(text));
  };
  Start(std::move(options));
  Client fits(server_->port());
  EXPECT_NE(fits.Send(Echo(std::string(999, 'a') + "Z")).Until("Z").find("200 OK"), std::string::npos);
  Client declared(server_->port());
  const std::string answer = declared.Send(Echo(std::string(1001, 'a'))).UntilClosed();
  EXPECT_NE(answer.find("HTTP/1.1 413 "), std::string::npos);
  EXPECT_NE(answer.find("\r\n\r\n413:the request's body is larger than 1000 bytes"), std::string::npos);
  EXPECT_NE(answer.find("\r\nx-request-id: "), std::string::npos);
  Client named(server_->port());
  const std::string mine = named
                               .Send(
                                   "POST /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine-1\r\n"
                                   "Content-Length: 2000\r\n\r\n")
                               .UntilClosed();
  EXPECT_NE(mine.find("\r\nx-request-id: mine-1\r\n"), std::string::npos) << mine;
  Client chunked(server_->port());
  chunked.Send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
               std::string(2000, 'b') + "\r\n");
  EXPECT_NE(chunked.UntilClosed().find("HTTP/1.1 413 "), std::string::npos);
}

TEST_F(Http, ReadsChunkedBodies) {
  Start();
  Client client(server_->port());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_NE(client.Until("abcde").find("Content-Length: 5\r\n"), std::string::npos);
}

TEST_F(Http, RefusesHeadersBeyondTheLimitWith431) {
  HttpServerOptions options;
  options.header_bytes_max = 2000;
  Start(std::move(options));
  Client client(server_->port());
  client.Send("GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(3000, 'x') + "\r\n\r\n");
  EXPECT_NE(client.UntilClosed().find("HTTP/1.1 431 "), std::string::npos);
}

TEST_F(Http, AnswersMalformedRequestsWith400AndLivesOn) {
  Start();
  for (const std::string bytes : {"\x01\x02garbage\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
                                  "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
                                  "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                                  "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                                  "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                                  "GET / HTTP/1.1\r\nbad header\r\n\r\n"}) {
    Client client(server_->port());
    EXPECT_NE(client.Send(bytes).UntilClosed().find("HTTP/1.1 400 "), std::string::npos) << bytes;
  }
  Client client(server_->port());
  EXPECT_NE(client.Send(Echo("alive")).Until("alive").find("200"), std::string::npos);
}

TEST_F(Http, AnswersHeadWithTheLengthAndWithoutTheBody) {
  Start();
  Client client(server_->port());
  client.Send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
  Next().responder->Respond(200, {}, "12345");
  const std::string head = client.Until("\r\n\r\n");
  EXPECT_NE(head.find("Content-Length: 5\r\n"), std::string::npos);
  EXPECT_TRUE(client.Send(Echo("after")).Until("after").starts_with("HTTP/1.1 200"));
}

TEST_F(Http, SaysContinueBeforeItReadsAnExpectedBody) {
  Start();
  Client client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
  EXPECT_EQ(client.Until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  EXPECT_NE(client.Send("body").Until("body").find("HTTP/1.1 200"), std::string::npos);
}

TEST_F(Http, ClosesAfterTheAnswerWhenAsked) {
  Start();
  Client close(server_->port());
  close.Send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  Next().responder->Respond(200, {}, "end");
  EXPECT_TRUE(close.UntilClosed().ends_with("Connection: close\r\n\r\nend"));
  Client old(server_->port());
  old.Send("GET /x HTTP/1.0\r\n\r\n");
  Call call = Next();
  call.responder->StartStream(200, {});
  call.responder->Write("plain");
  call.responder->End();
  EXPECT_TRUE(old.UntilClosed().ends_with("\r\n\r\nplain"));  // no chunks for HTTP/1.0
}

TEST_F(Http, ReportsWhatASlowReaderHasNotTaken) {
  Start();
  Client client(server_->port());
  client.Send(kGet);
  Call call = Next();
  call.responder->StartStream(200, {});
  const std::string block(1 << 20, 'x');
  for (int i = 0; i < 64; ++i) call.responder->Write(block);
  EXPECT_GT(call.responder->pending_bytes(), size_t{16} << 20);  // the kernel takes a few MiB at most
  call.responder->End();
  EXPECT_GT(client.Until("\r\n0\r\n\r\n").size(), size_t{64} << 20);
  EXPECT_EQ(call.responder->pending_bytes(), 0u);
}

TEST_F(Http, AnswersARequestThatNeverBecomesWholeWith408) {
  HttpServerOptions options;
  options.io_timeout_s = 1;
  Start(std::move(options));
  Client client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
  EXPECT_NE(client.UntilClosed().find("HTTP/1.1 408 "), std::string::npos);
}

TEST_F(Http, ClosesAConnectionThatIsIdleTooLong) {
  HttpServerOptions options;
  options.idle_timeout_s = 1;
  Start(std::move(options));
  Client fresh(server_->port()), used(server_->port());
  used.Send(Echo("x")).Until("\r\n\r\nx");
  EXPECT_EQ(fresh.UntilClosed(), "");
  EXPECT_EQ(used.UntilClosed(), "");
}

TEST_F(Http, RefusesConnectionsBeyondTheLimitWith503) {
  HttpServerOptions options;
  options.connections_max = 1;
  Start(std::move(options));
  Client first(server_->port());
  first.Send(Echo("a")).Until("\r\n\r\na");
  Client second(server_->port());
  EXPECT_NE(second.UntilClosed().find("HTTP/1.1 503 "), std::string::npos);
}

TEST_F(Http, ShutdownLetsOpenAnswersEndAndClosesIdleOnes) {
  Start();
  Client idle(server_->port()), open(server_->port());
  idle.Send(Echo("i")).Until("\r\n\r\ni");
  open.Send(kGet);
  Call call = Next();
  call.responder->StartStream(200, {});
  std::thread stop([&] { server_->Shutdown(20000); });
  EXPECT_EQ(idle.UntilClosed(), "");
  call.responder->Write("last");
  call.responder->End();
  EXPECT_TRUE(open.UntilClosed().ends_with("4\r\nlast\r\n0\r\n\r\n"));
  open.Close();
  stop.join();
  EXPECT_EQ(server_->open_connections(), 0u);
}

TEST_F(Http, ShutdownCutsAnswersThatOutlastTheGrace) {
  Start();
  Client open(server_->port());
  open.Send(kGet);
  Call call = Next();
  std::promise<void> closed;
  call.responder->OnClose([&] { closed.set_value(); });
  server_->Shutdown(10);
  EXPECT_EQ(open.UntilClosed(), "");
  closed.get_future().wait();
  server_.reset();
  call.responder->Respond(200, {}, "too late");  // an answer may outlive the server
}

TEST_F(Http, SaysWhichAddressIsBusy) {
  Start();
  HttpServerOptions options;
  options.port = server_->port();
  auto second = HttpServer::Start(options, [](HttpRequest, std::shared_ptr<HttpResponder>) {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(second.status().message()),
            "cannot listen on 127.0.0.1:" + std::to_string(server_->port()) + ": Address already in use");
}

TEST_F(Http, HoldsAThousandOpenStreamsOnTwoThreads) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_max < 2500) GTEST_SKIP() << "needs 2500 file descriptors, has " << files.rlim_max;
  files.rlim_cur = 1024;  // as in most shells: the server raises it
  setrlimit(RLIMIT_NOFILE, &files);
  HttpServerOptions options;
  options.threads = 2;
  Start(std::move(options));
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 1000; ++i) {
    clients.push_back(std::make_unique<Client>(server_->port()));
    clients.back()->Send("GET /" + std::to_string(i) + " HTTP/1.1\r\nHost: a\r\n\r\n");
  }
  std::vector<Call> calls = Next(1000);
  ASSERT_EQ(calls.size(), 1000u);
  for (Call& call : calls) call.responder->StartStream(200, {});
  for (int round = 0; round < 5; ++round) {
    for (Call& call : calls) call.responder->Write(call.request.path + "=" + std::to_string(round) + ";");
  }
  for (Call& call : calls) call.responder->End();
  for (int i = 0; i < 1000; ++i) {
    const std::string all = clients[static_cast<size_t>(i)]->Until("0\r\n\r\n"),
                      path = "/" + std::to_string(i) + "=";
    size_t at = 0;
    for (int round = 0; round < 5; ++round) {
      at = all.find(path + std::to_string(round) + ";", at);
      ASSERT_NE(at, std::string::npos) << "stream " << i << " round " << round;
    }
  }
  EXPECT_EQ(server_->open_connections(), 1000u);
}

}  // namespace
}  // namespace consilium
