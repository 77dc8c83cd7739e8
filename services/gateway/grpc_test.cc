// The gateway over real sockets: HTTP in front, a fake attention service and a fake controller behind, both
// gRPC.
#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bit>
#include <condition_variable>

#include "consilium/attention/v1/attention.grpc.pb.h"
#include "consilium/controller/v1/controller.grpc.pb.h"
#include "services/gateway/gateway_fixture.h"
#include "services/gateway/grpc_attention_client.h"
#include "services/gateway/worker_directory.h"

namespace consilium::gateway {
namespace {

namespace pb = consilium::attention::v1;
namespace ctl = consilium::controller::v1;

// Answers each submission with `words`, a token a message, from the submission's history on. Stops after
// `tokens_max` tokens of a session, as if frozen.
class FakeAttention final : public pb::Attention::Service {
 public:
  grpc::Status Session(grpc::ServerContext*,
                       grpc::ServerReaderWriter<pb::FromAttention, pb::ToAttention>* stream) override {
    pb::FromAttention hello;
    auto& w = *hello.mutable_welcome();
    w.set_worker("fake");
    w.mutable_model()->set_manifest(std::string(32, 'm'));
    w.mutable_numerics()->set_name("f32");
    w.set_context_tokens(768);
    w.set_vocab(2048);
    stream->Write(hello);
    pb::ToAttention message;
    while (stream->Read(&message)) {
      {
        std::lock_guard lock(mu);
        seen.push_back(message);
        changed.notify_all();
      }
      if (message.has_submit()) Answer(message.submit(), stream);
    }
    return grpc::Status::OK;
  }
  // The `n`th message of that kind (from 0).
  pb::ToAttention Wait(bool submit, size_t n) {
    std::unique_lock lock(mu);
    pb::ToAttention found;
    const bool ok = changed.wait_for(lock, std::chrono::seconds(20), [&] {
      size_t at = 0;
      for (const auto& m : seen) {
        if (m.has_submit() == submit && at++ == n) return found = m, true;
      }
      return false;
    });
    EXPECT_TRUE(ok);
    return found;
  }

  std::vector<TokenId> words = Ids("Hello there my friend");
  size_t tokens_max = 1000;
  std::mutex mu;
  std::condition_variable changed;
  std::vector<pb::ToAttention> seen;

 private:
  void Answer(const pb::Submit& s, grpc::ServerReaderWriter<pb::FromAttention, pb::ToAttention>* stream) {
    pb::FromAttention accepted;
    accepted.add_accepted()->set_request(s.request());
    accepted.mutable_accepted(0)->set_cached_tokens(16);
    stream->Write(accepted);
    const size_t from = s.history_size() > 0 ? static_cast<size_t>(s.history(0).tokens_size()) : 0;
    for (size_t i = from; i < words.size(); ++i) {
      if (i - from >= tokens_max) return;
      pb::FromAttention out;
      auto& t = *out.add_tokens();
      t.set_request(s.request());
      t.set_position(static_cast<uint32_t>(s.prompt_size()) + static_cast<uint32_t>(i));
      t.set_token(words[i]);
      t.set_logprob_bits(std::bit_cast<uint32_t>(-0.125f));
      auto& top = *t.add_top();
      top.set_token(words[i]);
      top.set_logprob_bits(std::bit_cast<uint32_t>(-0.125f));
      stream->Write(out);
    }
    pb::FromAttention end;
    end.add_finishes()->set_request(s.request());
    end.mutable_finishes(0)->set_reason(pb::Finish::LENGTH);
    stream->Write(end);
  }
};

class FakeController final : public ctl::Controller::Service {
 public:
  grpc::Status AttachGateway(
      grpc::ServerContext*, grpc::ServerReaderWriter<ctl::ClusterView, ctl::GatewayReport>* stream) override {
    ctl::GatewayReport report;
    stream->Read(&report);
    name = report.name();
    ctl::ClusterView view;
    auto& w = *view.add_workers();
    w.set_name("fake");
    w.set_address(worker);
    w.set_ready(true);
    stream->Write(view);
    while (stream->Read(&report)) {
    }
    return grpc::Status::OK;
  }
  std::string worker, name;
};

std::unique_ptr<grpc::Server> Serve(grpc::Service* service, int* port) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(*port), grpc::InsecureServerCredentials(), port);
  builder.RegisterService(service);
  return builder.BuildAndStart();
}
void Kill(std::unique_ptr<grpc::Server>* server) {
  (*server)->Shutdown(std::chrono::system_clock::now());
  server->reset();
}

// One request on a connection of its own.
class HttpClient {
 public:
  HttpClient(uint16_t port, const std::string& body) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
    const timeval wait{20, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    const std::string request =
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    EXPECT_EQ(send(fd_, request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
  }
  ~HttpClient() { Close(); }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  std::string Until(const std::string& mark) {
    char buffer[4096];
    while (mark.empty() || all_.find(mark) == std::string::npos) {
      const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) break;
      all_.append(buffer, static_cast<size_t>(n));
    }
    return all_;
  }

 private:
  int fd_;
  std::string all_;
};

std::string Body(Json fields = Json::object()) {
  Json body = {{"model", "demo"}, {"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
  body.update(fields);
  return body.dump();
}

class Loopback : public ::testing::Test {
 protected:
  void SetUp() override {
    attention_server_ = Serve(&attention_, &attention_port_);
    auto model = LoadModelInfo(CONSILIUM_SOURCE_DIR "/models/demo", "demo");
    ASSERT_TRUE(model.ok());
    gateway_ = std::make_unique<Gateway>(*std::move(model), GatewayOptions{}, &metrics_);
    auto http =
        HttpServer::Start({}, [g = gateway_.get()](HttpRequest request, std::shared_ptr<HttpResponder> r) {
          g->Handle(std::move(request), std::move(r));
        });
    ASSERT_TRUE(http.ok());
    http_ = std::move(*http);
  }
  void TearDown() override {
    http_.reset();
    directory_.reset();
    gateway_.reset();
    if (attention_server_) Kill(&attention_server_);
  }
  void Direct() {
    directory_ = std::make_unique<WorkerDirectory>(
        DirectoryOptions{"g", "", {"127.0.0.1:" + std::to_string(attention_port_)}}, gateway_->router());
  }

  Metrics metrics_;
  FakeAttention attention_;
  int attention_port_ = 0;
  std::unique_ptr<grpc::Server> attention_server_;
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<WorkerDirectory> directory_;
  std::unique_ptr<HttpServer> http_;
};

TEST_F(Loopback, AnswersAChatThroughHttpAndGrpc) {
  Direct();
  HttpClient client(http_->port(), Body({{"logprobs", true}, {"top_logprobs", 1}}));
  const std::string answer = client.Until("");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer;
  const Json j = Json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
  EXPECT_EQ(j["choices"][0]["message"]["content"], "Hello there my friend");
  EXPECT_EQ(j["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"], -0.125);
  EXPECT_EQ(j["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
  EXPECT_EQ(j["system_fingerprint"], "f32-0000000000000000-6d6d6d6d6d6d");
}

TEST_F(Loopback, CarriesEveryFieldOfASubmission) {
  Direct();
  HttpClient client(http_->port(), Body({{"temperature", 0.5},
                                         {"top_p", 0.25},
                                         {"top_k", 4},
                                         {"min_p", 0.125},
                                         {"presence_penalty", 1},
                                         {"frequency_penalty", -1},
                                         {"repetition_penalty", 2},
                                         {"logit_bias", {{"7", 1.5}}},
                                         {"seed", 99},
                                         {"n", 1},
                                         {"max_tokens", 9},
                                         {"min_tokens", 2},
                                         {"logprobs", true},
                                         {"top_logprobs", 3}}));
  client.Until("");
  const pb::Submit s = attention_.Wait(true, 0).submit();
  EXPECT_EQ(s.manifest(), std::string(32, 'm'));
  EXPECT_GT(s.prompt_size(), 3);
  EXPECT_EQ(s.sampling().seed(), 99u);
  EXPECT_EQ(s.sampling().temperature(), 0.5);
  EXPECT_EQ(s.sampling().top_p(), 0.25);
  EXPECT_EQ(s.sampling().top_k(), 4u);
  EXPECT_EQ(s.sampling().min_p(), 0.125);
  EXPECT_EQ(s.sampling().presence_penalty(), 1);
  EXPECT_EQ(s.sampling().frequency_penalty(), -1);
  EXPECT_EQ(s.sampling().repetition_penalty(), 2);
  EXPECT_EQ(s.sampling().logit_bias(0).token(), 7u);
  EXPECT_EQ(s.sampling().logit_bias(0).bias(), 1.5f);
  EXPECT_EQ(s.n(), 1u);
  EXPECT_EQ(s.stop_ids(0), kEos);
  EXPECT_EQ(s.max_tokens(), 9u);
  EXPECT_EQ(s.min_tokens(), 2u);
  EXPECT_EQ(s.top_logprobs(), 3);
  EXPECT_GT(s.budget_ms(), 0u);
  EXPECT_FALSE(s.request_id().empty());
}

TEST_F(Loopback, ResumesAStreamWhenTheWorkerIsReplaced) {
  attention_.tokens_max = 2;
  Direct();
  HttpClient client(http_->port(), Body({{"stream", true}}));
  client.Until("there");
  Kill(&attention_server_);
  attention_.tokens_max = 1000;
  attention_server_ = Serve(&attention_, &attention_port_);
  const std::string all = client.Until("[DONE]");
  EXPECT_NE(all.find("friend"), std::string::npos) << all;
  EXPECT_EQ(all.find("error"), std::string::npos);
  const pb::Submit again = attention_.Wait(true, 1).submit();
  EXPECT_EQ(again.attempt(), 1u);
  EXPECT_EQ(again.history(0).tokens_size(), 1);  // the second token was computed again and compared
}

TEST_F(Loopback, CancelsAtTheWorkerWhenTheClientGoes) {
  attention_.tokens_max = 2;
  Direct();
  HttpClient client(http_->port(), Body({{"stream", true}}));
  client.Until("there");
  client.Close();
  const pb::Cancel cancel = attention_.Wait(false, 0).cancel();
  EXPECT_EQ(cancel.request(), attention_.Wait(true, 0).submit().request());
  EXPECT_EQ(cancel.choice(), -1);
}

TEST_F(Loopback, FindsWorkersThroughTheControllerAndKeepsThemWhenItIsGone) {
  FakeController controller;
  controller.worker = "127.0.0.1:" + std::to_string(attention_port_);
  int port = 0;
  auto server = Serve(&controller, &port);
  directory_ = std::make_unique<WorkerDirectory>(
      DirectoryOptions{"g7", "127.0.0.1:" + std::to_string(port), {}}, gateway_->router());
  HttpClient before(http_->port(), Body());
  EXPECT_NE(before.Until("").find("Hello there my friend"), std::string::npos);
  EXPECT_EQ(controller.name, "g7");
  Kill(&server);
  HttpClient after(http_->port(), Body());
  EXPECT_NE(after.Until("").find("Hello there my friend"), std::string::npos);
}

}  // namespace
}  // namespace consilium::gateway
