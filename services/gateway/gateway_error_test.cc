// Bad input, lost workers, lost clients, limits.
#include <filesystem>
#include <fstream>

#include "services/gateway/gateway_fixture.h"

namespace consilium::gateway {
namespace {

struct Bad {
  Json fields;
  int status;
  const char* param;  // nullptr: null
  const char* code;   // nullptr: any
};

TEST_F(GatewayTest, AnswersBadChatFieldsInOpenAIsShape) {
  const Json message = {{"role", "user"}, {"content", "Hi"}};
  const std::vector<Bad> table = {
      {{{"model", "nope"}}, 404, "model", "model_not_found"},
      {{{"model", nullptr}}, 400, "model", nullptr},
      {{{"model", 3}}, 400, "model", "invalid_type"},
      {{{"messages", nullptr}}, 400, "messages", "missing_required_parameter"},
      {{{"messages", Json::array()}}, 400, "messages", nullptr},
      {{{"messages", "hi"}}, 400, "messages", nullptr},
      {{{"messages", {{{"role", "king"}, {"content", "x"}}}}}, 400, "messages[0].role", "invalid_value"},
      {{{"messages", {{{"content", "x"}}}}}, 400, "messages[0].role", nullptr},
      {{{"messages", {{{"role", "user"}}}}}, 400, "messages[0].content", nullptr},
      {{{"messages", {{{"role", "user"}, {"content", 5}}}}}, 400, "messages[0].content", "invalid_type"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}}},
       400,
       "messages[0].content",
       nullptr},
      {{{"messages", {{{"role", "assistant"}, {"tool_calls", {1}}}}}},
       400,
       "messages[0].tool_calls",
       nullptr},
      {{{"messages",
         {{{"role", "assistant"}, {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", "{"}}}}}}}}}},
       400,
       "messages[0].tool_calls",
       nullptr},
      {{{"temperature", 2.1}}, 400, "temperature", "invalid_value"},
      {{{"temperature", "hot"}}, 400, "temperature", "invalid_type"},
      {{{"top_p", -0.1}}, 400, "top_p", nullptr},
      {{{"top_k", -2}}, 400, "top_k", nullptr},
      {{{"min_p", 1.5}}, 400, "min_p", nullptr},
      {{{"presence_penalty", 3}}, 400, "presence_penalty", nullptr},
      {{{"frequency_penalty", -3}}, 400, "frequency_penalty", nullptr},
      {{{"repetition_penalty", 0}}, 400, "repetition_penalty", nullptr},
      {{{"n", 0}}, 400, "n", "invalid_value"},
      {{{"n", 129}}, 400, "n", nullptr},
      {{{"n", 1.5}}, 400, "n", "invalid_type"},
      {{{"n", 1e23}}, 400, "n", nullptr},
      {{{"n", UINT64_MAX}}, 400, "n", nullptr},
      {{{"max_tokens", 0}}, 400, "max_tokens", nullptr},
      {{{"max_tokens", 1e30}}, 400, "max_tokens", nullptr},
      {{{"max_tokens", 100000}}, 400, "messages", "context_length_exceeded"},
      {{{"min_tokens", 20}, {"max_tokens", 10}}, 400, "min_tokens", nullptr},
      {{{"seed", "x"}}, 400, "seed", nullptr},
      {{{"stop", 5}}, 400, "stop", nullptr},
      {{{"stop", ""}}, 400, "stop", nullptr},
      {{{"stop", std::vector<std::string>(17, "x")}}, 400, "stop", "array_above_max_length"},
      {{{"stop_token_ids", {2048}}}, 400, "stop_token_ids", nullptr},
      {{{"logit_bias", {{"x", 1}}}}, 400, "logit_bias", nullptr},
      {{{"logit_bias", {{"2048", 1}}}}, 400, "logit_bias", nullptr},
      {{{"logit_bias", {{"1", 101}}}}, 400, "logit_bias.1", nullptr},
      {{{"logprobs", 5}}, 400, "logprobs", "invalid_type"},
      {{{"top_logprobs", 5}}, 400, "top_logprobs", nullptr},
      {{{"logprobs", true}, {"top_logprobs", 21}}, 400, "top_logprobs", nullptr},
      {{{"stream", "yes"}}, 400, "stream", nullptr},
      {{{"stream_options", {{"include_usage", true}}}}, 400, "stream_options", nullptr},
      {{{"response_format", {{"type", "json_object"}}}}, 400, "response_format", "unsupported_parameter"},
      {{{"response_format", {{"type", "json_schema"}}}}, 400, "response_format", "unsupported_parameter"},
      {{{"guided_json", Json::object()}}, 400, "guided_json", "unsupported_parameter"},
      {{{"guided_regex", "a"}}, 400, "guided_regex", nullptr},
      {{{"tool_choice", "required"}, {"tools", Json::array()}}, 400, "tool_choice", "unsupported_parameter"},
      {{{"tool_choice", {{"type", "function"}}}}, 400, "tool_choice", nullptr},
      {{{"tool_choice", "auto"}}, 400, "tool_choice", nullptr},
      {{{"tools", {1}}}, 400, "tools[0]", nullptr},
      {{{"functions", {1}}}, 400, "functions", nullptr},
  };
  for (const Bad& bad : table) {
    auto r = Chat(bad.fields);
    ASSERT_EQ(r->status, bad.status) << bad.fields << r->body;
    const Json error = r->json()["error"];
    EXPECT_FALSE(error["message"].get<std::string>().empty());
    EXPECT_EQ(error["type"], "invalid_request_error") << bad.fields;
    EXPECT_EQ(error["param"], bad.param == nullptr ? Json() : Json(bad.param)) << bad.fields << error;
    if (bad.code != nullptr) {
      EXPECT_EQ(error["code"], bad.code) << bad.fields;
    }
  }
  EXPECT_TRUE(worker_->submitted.empty());
}

TEST_F(GatewayTest, AnswersBadCompletionFieldsInOpenAIsShape) {
  const std::vector<Bad> table = {
      {{{"prompt", nullptr}}, 400, "prompt", "missing_required_parameter"},
      {{{"prompt", ""}}, 400, "prompt", nullptr},
      {{{"prompt", Json::array()}}, 400, "prompt", nullptr},
      {{{"prompt", {1, 2048}}}, 400, "prompt", nullptr},
      {{{"prompt", {1, "x"}}}, 400, "prompt", nullptr},
      {{{"prompt", {{1, -1}}}}, 400, "prompt", nullptr},
      {{{"prompt", {true}}}, 400, "prompt", nullptr},
      {{{"prompt", std::string(100000, 'x')}}, 400, "prompt", "context_length_exceeded"},
      {{{"prompt", std::vector<int>(768, 5)}, {"max_tokens", 1}}, 400, "prompt", "context_length_exceeded"},
      {{{"prompt", std::vector<int>(768, 5)}, {"max_tokens", nullptr}},
       400,
       "prompt",
       "context_length_exceeded"},
      {{{"logprobs", 21}}, 400, "logprobs", nullptr},
      {{{"logprobs", true}}, 400, "logprobs", "invalid_type"},
      {{{"best_of", 1}, {"n", 2}}, 400, "best_of", nullptr},
      {{{"best_of", 2}, {"stream", true}}, 400, "best_of", nullptr},
      {{{"suffix", "x"}}, 400, "suffix", nullptr},
      {{{"max_tokens", -1}}, 400, "max_tokens", nullptr},
      {{{"prompt", std::vector<std::string>(257, "x")}}, 400, "prompt", nullptr},
      {{{"prompt", std::vector<std::string>(16, "x")}, {"n", 128}}, 400, "prompt", nullptr},
  };
  for (const Bad& bad : table) {
    auto r = Complete(bad.fields);
    ASSERT_EQ(r->status, bad.status) << bad.fields.dump().substr(0, 200) << r->body;
    EXPECT_EQ(r->json()["error"]["param"], bad.param) << r->body;
    if (bad.code != nullptr) {
      EXPECT_EQ(r->json()["error"]["code"], bad.code) << r->body;
    }
  }
}

TEST_F(GatewayTest, WordsAContextOverflowAsOpenAIDoes) {
  auto r = Complete({{"prompt", std::vector<int>(700, 5)}, {"max_tokens", 100}});
  EXPECT_EQ(r->json()["error"]["message"],
            "This model's maximum context length is 768 tokens. However, you requested 800 tokens (700 in "
            "the prompt, 100 in the "
            "completion). Please reduce the length of the prompt or completion.");
  Complete({{"prompt", std::vector<int>(700, 5)}, {"max_tokens", 68}});
  EXPECT_EQ(last().max_tokens, 68u);
  Complete({{"prompt", std::vector<int>(760, 5)}, {"max_tokens", nullptr}});
  EXPECT_EQ(last().max_tokens, 8u);  // the default of 16 shrinks
}

TEST_F(GatewayTest, SurvivesBodiesThatAreNotWhatTheySeem) {
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("\"x\""),
        std::string("{\"model\":\"\xff\xfe\"}"), std::string("{\"model\":\"\\ud800\"}"),
        std::string("{\"seed\":1e999}"), std::string(1000000, '['), std::string(1000000, '{'),
        "{\"a\":" + std::string(500000, '[') + std::string(500000, ']') + "}",
        std::string("{\"model\":\"demo\",}"), std::string(1, '\0')}) {
    for (const char* path : {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"}) {
      auto r = Send("POST", path, body);
      ASSERT_EQ(r->status, 400) << body.substr(0, 60);
      EXPECT_EQ(r->json()["error"]["type"], "invalid_request_error");
    }
  }
}

TEST_F(GatewayTest, IgnoresUnknownFields) {
  Chat({{"frobnicate", 1}, {"metadata", {{"a", "b"}}}});
  EXPECT_EQ(worker_->submitted.size(), 1u);
}

TEST_F(GatewayTest, AnswersUnknownPathsAndWrongMethods) {
  EXPECT_EQ(Send("GET", "/nope")->status, 404);
  EXPECT_EQ(Send("GET", "/\xff")->status, 404);
  auto r = Send("GET", "/v1/chat/completions");
  EXPECT_EQ(r->status, 405);
  EXPECT_EQ(r->header("Allow"), "POST");
  EXPECT_EQ(Send("POST", "/v1/models")->status, 405);
  EXPECT_EQ(Send("OPTIONS", "/v1/models")->status, 405);
  EXPECT_EQ(Send("HEAD", "/v1/models")->status, 200);
}

TEST_F(GatewayTest, AsksForAKeyWhenKeysAreSet) {
  GatewayOptions options;
  options.api_keys = {"sk-one", "sk-two"};
  Make(std::move(options));
  worker_ = AddWorker();
  EXPECT_EQ(Send("GET", "/v1/models")->status, 401);
  EXPECT_EQ(Send("GET", "/v1/models")->json()["error"]["code"], "invalid_api_key");
  EXPECT_EQ(Send("POST", "/v1/chat/completions", "{}", {{"Authorization", "Bearer sk-on"}})->status, 401);
  EXPECT_EQ(Send("GET", "/v1/models", "", {{"Authorization", "Bearer sk-two"}})->status, 200);
  EXPECT_EQ(Send("GET", "/health")->status, 200);
}

TEST_F(GatewayTest, AnswersCorsOnlyWhenAsked) {
  EXPECT_EQ(Send("GET", "/version")->header("Access-Control-Allow-Origin"), "");
  GatewayOptions options;
  options.cors_origin = "https://example.org";
  Make(std::move(options));
  worker_ = AddWorker();
  EXPECT_EQ(Send("OPTIONS", "/v1/chat/completions")->status, 204);
  EXPECT_EQ(Send("GET", "/version")->header("Access-Control-Allow-Origin"), "https://example.org");
}

TEST_F(GatewayTest, CancelsEverythingWhenTheClientGoes) {
  auto r = Complete({{"prompt", {"a", "b"}}, {"stream", true}});
  ASSERT_EQ(worker_->submitted.size(), 2u);
  r->on_close();
  ASSERT_EQ(worker_->cancelled.size(), 2u);
  EXPECT_EQ(worker_->cancelled[0], std::pair(worker_->submitted[0].request, -1));
  EXPECT_EQ(gateway_->router()->open_requests(), 0u);
  Say("late tokens are dropped");
  EXPECT_TRUE(r->body.empty());
  EXPECT_EQ(Metric("consilium_gateway_disconnects_total"), 1);
}

TEST_F(GatewayTest, CutsAStreamWhoseClientDoesNotRead) {
  auto r = Chat({{"stream", true}});
  r->pending = (size_t{1} << 20) + 1;
  Tokens(worker_, last(), {Ids("a")[0]});
  EXPECT_EQ(worker_->cancelled.size(), 1u);
  EXPECT_FALSE(r->ended);  // dropped: the server cuts the connection
  EXPECT_EQ(r.use_count(), 1);
}

TEST_F(GatewayTest, ResumesOnAnotherSessionAndComparesTheLastToken) {
  auto r = Chat({{"stream", true}, {"logprobs", true}, {"top_logprobs", 2}});
  const SessionSubmit first = last();
  const auto ids = Ids("Hello there my friend");
  Tokens(worker_, first, {ids.begin(), ids.begin() + 3});
  worker_->Down();
  EXPECT_EQ(worker_->submitted.size(), 1u);
  worker_->Welcome();
  ASSERT_EQ(worker_->submitted.size(), 2u);
  EXPECT_EQ(last().attempt, 1u);
  EXPECT_EQ(last().request, first.request);
  EXPECT_EQ(last().sampling.seed, first.sampling.seed);
  EXPECT_EQ(last().history[0].second, (std::vector<TokenId>{ids[0], ids[1]}));
  Tokens(worker_, last(), {ids.begin() + 2, ids.end()}, 0, 2);  // the third token once more
  Finish(worker_, last(), FinishReason::kLength);
  EXPECT_EQ(StreamedContent(r->events()), "Hello there my friend");
  EXPECT_EQ(Metric("consilium_gateway_duplicate_tokens_total"), 1);
  EXPECT_EQ(Metric("consilium_gateway_resumes_total"), 1);
}

TEST_F(GatewayTest, DoesNotComputeFinishedChoicesAgain) {
  Chat({{"n", 2}});
  SayTo(last(), "done", 0);
  worker_->Down();
  worker_->Welcome();
  ASSERT_EQ(worker_->cancelled.size(), 1u);
  EXPECT_EQ(worker_->cancelled[0], std::pair(last().request, 0));
}

TEST_F(GatewayTest, ResumesOnTheOtherWorkerAtOnce) {
  FakeClient* other = AddWorker("w2");
  auto r = Chat();
  FakeClient* used = worker_->submitted.empty() ? other : worker_;
  FakeClient* spare = used == worker_ ? other : worker_;
  used->Down();
  ASSERT_EQ(spare->submitted.size(), 1u);
  worker_ = spare;
  Say("fine");
  EXPECT_EQ(r->json()["choices"][0]["message"]["content"], "fine");
}

TEST_F(GatewayTest, StaysWithItsManifestAndClass) {
  FakeClient* other = AddWorker("w2", false);
  Chat();
  worker_->Down();
  other->Welcome(std::string(32, 'x'));
  EXPECT_TRUE(other->submitted.empty());  // another model: not the same tokens
  worker_->Welcome();
  EXPECT_EQ(worker_->submitted.size(), 2u);
}

TEST_F(GatewayTest, AlarmsWhenATokenComputedAgainDiffers) {
  auto r = Chat({{"stream", true}});
  const auto ids = Ids("Hello there");
  Tokens(worker_, last(), ids);
  worker_->Down();
  worker_->Welcome();
  Tokens(worker_, last(), {Ids("x")[0]}, 0, static_cast<uint32_t>(ids.size()) - 1);
  EXPECT_EQ(Metric("consilium_exactness_violations_total"), 1);
  EXPECT_NE(r->body.find("\"code\":\"exactness_violation\""), std::string::npos);
  EXPECT_EQ(r->body.find("[DONE]"), std::string::npos);
  EXPECT_TRUE(r->ended);
}

TEST_F(GatewayTest, WaitsForAWorkerAndThenAnswers503) {
  GatewayOptions options;
  options.router.admission_wait_ms = 0;
  Make(std::move(options));
  EXPECT_EQ(Send("GET", "/health")->status, 503);
  auto r = Chat();
  while (gateway_->router()->open_requests() > 0) std::this_thread::yield();
  EXPECT_EQ(r->status, 503);
  EXPECT_EQ(r->header("Retry-After"), "1");
  EXPECT_EQ(r->json()["error"]["code"], "no_worker");
}

TEST_F(GatewayTest, AnUnknownContextIsA503UntilAWorkerSaysIt) {
  Make({}, {}, /*context_known=*/false);
  auto r = Chat();
  EXPECT_EQ(r->status, 503);
  EXPECT_EQ(r->json()["error"]["code"], "no_worker");
  worker_ = AddWorker();
  r = Chat();
  Say("now");
  EXPECT_EQ(r->status, 200);
}

TEST_F(GatewayTest, AWaitingRequestStartsWhenAWorkerComes) {
  Make();
  worker_ = AddWorker("w1", false);
  auto r = Chat();
  EXPECT_EQ(r->status, 0);
  worker_->Welcome();
  Say("now");
  EXPECT_EQ(r->status, 200);
}

TEST_F(GatewayTest, EndsAStreamWithAnErrorEventWhenNoWorkerComesBack) {
  GatewayOptions options;
  options.router.resume_wait_ms = 0;
  Make(std::move(options));
  worker_ = AddWorker();
  auto r = Chat({{"stream", true}});
  Tokens(worker_, last(), {Ids("a")[0]});
  worker_->Down();
  while (gateway_->router()->open_requests() > 0) std::this_thread::yield();
  EXPECT_EQ(r->status, 200);
  EXPECT_NE(r->body.find("data: {\"error\":{"), std::string::npos);
  EXPECT_EQ(r->body.find("[DONE]"), std::string::npos);
  EXPECT_TRUE(r->ended);
}

TEST_F(GatewayTest, TimesOutAsAWhole) {
  GatewayOptions options;
  options.router.request_timeout_ms = 1;
  Make(std::move(options));
  worker_ = AddWorker();
  auto r = Chat();
  while (gateway_->router()->open_requests() > 0) std::this_thread::yield();
  EXPECT_EQ(r->status, 503);
  EXPECT_EQ(r->json()["error"]["code"], "timeout");
}

TEST_F(GatewayTest, MapsWorkerErrorsToStatuses) {
  const auto fail = [&](absl::StatusCode code) {
    auto r = Chat();
    SessionEvents step;
    step.errors.push_back({last().request, code, "because", 2500});
    worker_->sink->OnStep(std::move(step));
    return r;
  };
  auto busy = fail(absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(busy->status, 429);
  EXPECT_EQ(busy->header("Retry-After"), "3");
  EXPECT_EQ(busy->json()["error"]["code"], "rate_limit_exceeded");
  EXPECT_EQ(fail(absl::StatusCode::kInvalidArgument)->status, 400);
  EXPECT_EQ(fail(absl::StatusCode::kFailedPrecondition)->status, 503);
  EXPECT_EQ(fail(absl::StatusCode::kInternal)->status, 500);
  EXPECT_EQ(gateway_->router()->open_requests(), 0u);
}

TEST_F(GatewayTest, AsksTheNextWorkerWhenOneIsFullAndThenAnswers429) {
  FakeClient* other = AddWorker("w2");
  auto r = Chat();
  FakeClient* first = worker_->submitted.empty() ? other : worker_;
  FakeClient* second = first == worker_ ? other : worker_;
  const auto refuse = [](FakeClient* w) {
    SessionEvents step;
    step.errors.push_back({w->submitted.back().request, absl::StatusCode::kResourceExhausted, "full", 1500});
    w->sink->OnStep(std::move(step));
  };
  refuse(first);
  EXPECT_EQ(r->status, 0);
  ASSERT_EQ(second->submitted.size(), 1u);
  EXPECT_EQ(second->submitted[0].attempt, 0u);
  refuse(second);
  EXPECT_EQ(r->status, 429);
  EXPECT_EQ(r->header("Retry-After"), "2");
  EXPECT_EQ(first->submitted.size(), 1u);
  EXPECT_EQ(gateway_->router()->open_requests(), 0u);
}

TEST_F(GatewayTest, RefusesMoreRequestsThanAllowedWith429) {
  GatewayOptions options;
  options.router.requests_max = 1;
  Make(std::move(options));
  worker_ = AddWorker();
  auto first = Chat();
  EXPECT_EQ(Chat()->status, 429);
  Say("x");
  EXPECT_EQ(first->status, 200);
  EXPECT_EQ(Chat()->status, 0);
}

TEST_F(GatewayTest, RefusesNewRequestsWhileItShutsDown) {
  auto open = Chat();
  gateway_->router()->Drain();
  EXPECT_EQ(Chat()->status, 503);
  Say("still served");
  EXPECT_EQ(open->status, 200);
}

TEST_F(GatewayTest, AnswersOpenRequestsWhenItIsDestroyed) {
  auto r = Chat();
  gateway_.reset();
  EXPECT_EQ(r->status, 503);
}

TEST_F(GatewayTest, ADrainingWorkerTakesNothingNew) {
  FakeClient* other = AddWorker("w2");
  gateway_->router()->SetDraining("w1", true);
  for (int i = 0; i < 5; ++i) Chat({{"messages", {{{"role", "user"}, {"content", std::to_string(i)}}}}});
  EXPECT_TRUE(worker_->submitted.empty());
  EXPECT_EQ(other->submitted.size(), 5u);
  EXPECT_EQ(gateway_->router()->ready_workers(), 1u);
}

TEST_F(GatewayTest, ResumesElsewhereWhenAWorkerIsRemoved) {
  auto r = Chat();
  FakeClient* other = AddWorker("w2", false);
  gateway_->router()->RemoveWorker("w1");
  EXPECT_EQ(r->status, 0);
  other->Welcome();
  worker_ = other;
  EXPECT_EQ(last().attempt, 1u);
  Say("moved");
  EXPECT_EQ(r->json()["choices"][0]["message"]["content"], "moved");
}

TEST(ModelInfo, SaysWhatIsMissing) {
  const auto model = LoadModelInfo("/nonexistent", "x");
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(std::string(model.status().message()),
            "model /nonexistent: cannot read tokenizer.json (expected a Hugging Face folder)");
}

TEST(ModelInfo, SaysHowToMakeATokenizerJson) {
  const std::string dir = ::testing::TempDir() + "/consilium-gateway-tokenizers";
  for (const char* file : {"tokenizer.model", "tekken.json", "tiktoken.model"}) {
    std::filesystem::create_directories(dir);
    std::ofstream(dir + "/" + file) << "x";
    const auto model = LoadModelInfo(dir, "x");
    std::filesystem::remove_all(dir);
    ASSERT_FALSE(model.ok());
    const std::string message(model.status().message());
    EXPECT_NE(message.find("tokenizer.json is missing"), std::string::npos) << message;
    EXPECT_NE(message.find(std::string("(") + file + ")"), std::string::npos) << message;
  }
}

TEST(ModelInfo, ReadsListsOfEndTokensAndTemplatesInTheTokenizerConfig) {
  const auto model = LoadModelInfo(CONSILIUM_SOURCE_DIR "/tests/golden/mixtral", "m");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->stop_ids, (std::vector<TokenId>{2, 4}));
  EXPECT_EQ(model->bos_token, "<s>");
  EXPECT_NE(model->chat_template, nullptr);
}

}  // namespace
}  // namespace consilium::gateway
