// A gateway with scripted workers and clients in memory: everything runs on the test's thread.
#pragma once
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "services/gateway/gateway.h"

namespace consilium::gateway {

using Json = nlohmann::ordered_json;

struct FakeResponder final : HttpResponder {
  void Respond(int s, HttpHeaders h, std::string b) override {
    EXPECT_EQ(status, 0) << "answered twice";
    status = s, headers = std::move(h), body = std::move(b), ended = true;
  }
  void StartStream(int s, HttpHeaders h) override {
    EXPECT_EQ(status, 0) << "answered twice";
    status = s, headers = std::move(h);
  }
  void Write(std::string chunk) override { writes.push_back(chunk), body += chunk; }
  void End() override { ended = true; }
  size_t pending_bytes() const override { return pending; }
  bool closed() const override { return false; }
  void OnClose(std::function<void()> f) override { on_close = std::move(f); }

  std::string header(const std::string& name) const {
    for (const auto& [k, v] : headers) {
      if (k == name) return v;
    }
    return "";
  }
  Json json() const { return Json::parse(body); }
  // The data of each SSE event but the last, which must be [DONE].
  std::vector<Json> events() const {
    std::vector<Json> out;
    std::string rest = body;
    bool done = false;
    while (!rest.empty()) {
      EXPECT_TRUE(rest.starts_with("data: ")) << rest;
      const size_t end = rest.find("\n\n");
      const std::string data = rest.substr(6, end - 6);
      rest.erase(0, end + 2);
      EXPECT_FALSE(done);
      if (data == "[DONE]")
        done = true;
      else
        out.push_back(Json::parse(data));
    }
    EXPECT_TRUE(done) << body;
    return out;
  }

  int status = 0;
  HttpHeaders headers;
  std::string body;
  std::vector<std::string> writes;
  bool ended = false;
  size_t pending = 0;
  std::function<void()> on_close;
};

struct FakeClient final : AttentionClient {
  void Start(AttentionSink* s) override { sink = s; }
  absl::Status Submit(const SessionSubmit& request) override {
    if (!open) return absl::UnavailableError("down");
    submitted.push_back(request);
    return absl::OkStatus();
  }
  void Cancel(uint64_t request, std::optional<uint32_t> choice) override {
    cancelled.emplace_back(request, choice ? static_cast<int>(*choice) : -1);
  }
  void Welcome(const std::string& manifest = std::string(32, '\x5a'), uint32_t context = 768) {
    open = true;
    sink->OnWelcome({"w", "demo", manifest, "f32", 0x1234, context, 2048});
  }
  void Down() {
    open = false;
    sink->OnDown(absl::UnavailableError("gone"));
  }
  AttentionSink* sink = nullptr;
  bool open = false;
  std::vector<SessionSubmit> submitted;
  std::vector<std::pair<uint64_t, int>> cancelled;
};

inline std::shared_ptr<const Tokenizer> DemoTokenizer() {
  static const auto tokenizer = LoadModelInfo(CONSILIUM_SOURCE_DIR "/models/demo", "demo")->tokenizer;
  return tokenizer;
}
inline std::vector<TokenId> Ids(const std::string& text) { return *DemoTokenizer()->Encode(text, false); }
inline constexpr TokenId kEos = 2;

// What a fake worker reports of a token: a function of position and token, as a real one's.
inline SessionToken Event(const SessionSubmit& r, uint32_t choice, Position position, TokenId token) {
  SessionToken e{r.request,
                 choice,
                 position,
                 token,
                 -0.1f * static_cast<float>(position % 7 + 1) - 0.001f * static_cast<float>(token),
                 {}};
  for (int k = 0; k < r.top_logprobs; ++k)
    e.top.push_back({k == 0 ? token : static_cast<TokenId>((token + static_cast<TokenId>(k)) % 2048),
                     e.logprob - static_cast<float>(k)});
  return e;
}

class GatewayTest : public ::testing::Test {
 protected:
  // `context_known` false: a config.json that does not say how long the context is.
  void Make(GatewayOptions options = {}, const ParserNames& parsers = {}, bool context_known = true) {
    auto model = LoadModelInfo(CONSILIUM_SOURCE_DIR "/models/demo", "demo", parsers);
    ASSERT_TRUE(model.ok()) << model.status();
    if (!context_known) model->context_tokens = 0;
    metrics_ = std::make_unique<Metrics>();
    gateway_ = std::make_unique<Gateway>(*std::move(model), std::move(options), metrics_.get());
  }
  FakeClient* AddWorker(const std::string& key = "w1", bool welcome = true) {
    auto client = std::make_unique<FakeClient>();
    FakeClient* raw = client.get();
    gateway_->router()->AddWorker(key, std::move(client));
    if (welcome) raw->Welcome();
    return raw;
  }
  void SetUp() override {
    Make();
    worker_ = AddWorker();
  }
  std::shared_ptr<FakeResponder> Send(const std::string& method, const std::string& path,
                                      const std::string& body = "", HttpHeaders headers = {}) {
    auto responder = std::make_shared<FakeResponder>();
    gateway_->Handle({method, path, "", std::move(headers), body, "test"}, responder);
    return responder;
  }
  std::shared_ptr<FakeResponder> Chat(Json fields = Json::object()) {
    Json body = {{"model", "demo"}, {"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
    body.update(fields);
    return Send("POST", "/v1/chat/completions", body.dump());
  }
  std::shared_ptr<FakeResponder> Complete(Json fields = Json::object()) {
    Json body = {{"model", "demo"}, {"prompt", "Once upon"}, {"max_tokens", 100}};
    body.update(fields);
    return Send("POST", "/v1/completions", body.dump());
  }
  // Sends `tokens` of one choice, each in a step of its own, from the choice's output position `from` on.
  void Tokens(FakeClient* w, const SessionSubmit& r, const std::vector<TokenId>& tokens, uint32_t choice = 0,
              uint32_t from = 0) {
    for (uint32_t i = 0; i < tokens.size(); ++i) {
      SessionEvents step;
      step.tokens.push_back(Event(r, choice, static_cast<Position>(r.prompt.size()) + from + i, tokens[i]));
      w->sink->OnStep(std::move(step));
    }
  }
  void Finish(FakeClient* w, const SessionSubmit& r, FinishReason reason, uint32_t choice = 0) {
    SessionEvents step;
    step.finishes.push_back({r.request, choice, reason});
    w->sink->OnStep(std::move(step));
  }
  // The worker says `text` as choice `choice` of its last submission, and then the end token.
  void Say(const std::string& text, uint32_t choice = 0) { SayTo(worker_->submitted.back(), text, choice); }
  void SayTo(const SessionSubmit request, const std::string& text, uint32_t choice = 0) {
    std::vector<TokenId> ids = Ids(text);
    ids.push_back(kEos);
    Tokens(worker_, request, ids, choice);
    Finish(worker_, request, FinishReason::kStop, choice);
  }
  double Metric(const std::string& line_start) const {
    const std::string text = metrics_->Text();
    const size_t at = text.find("\n" + line_start);
    return at == std::string::npos
               ? -1
               : std::stod(text.substr(text.find_last_of(' ', text.find('\n', at + 1)) + 1));
  }
  const SessionSubmit& last() const { return worker_->submitted.back(); }

  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Gateway> gateway_;
  FakeClient* worker_ = nullptr;
};

// The text of all deltas of a choice of a chat stream.
inline std::string StreamedContent(const std::vector<Json>& events, int index = 0) {
  std::string out;
  for (const Json& e : events) {
    for (const Json& c : e["choices"]) {
      if (c["index"] == index && c["delta"].contains("content") && c["delta"]["content"].is_string())
        out += c["delta"]["content"].get<std::string>();
    }
  }
  return out;
}

}  // namespace consilium::gateway
