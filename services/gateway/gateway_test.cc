// The API's answers, each option at least once.
#include "services/gateway/gateway_fixture.h"

namespace consilium::gateway {
namespace {

TEST_F(GatewayTest, AnswersAChatWithTextFinishUsageAndFingerprint) {
  auto r = Chat({{"seed", 7}, {"user", "u"}});
  EXPECT_EQ(r->status, 0);  // nothing before the worker spoke
  EXPECT_EQ(last().prompt, Ids("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
  EXPECT_EQ(last().sampling.seed, 7u);
  EXPECT_EQ(last().max_tokens, 768 - last().prompt.size());
  EXPECT_EQ(last().stop_ids, std::vector<TokenId>{kEos});
  EXPECT_EQ(last().top_logprobs, -1);
  EXPECT_EQ(last().manifest, std::string(32, '\x5a'));
  SessionEvents accepted;
  accepted.accepted.push_back({last().request, 16});
  worker_->sink->OnStep(std::move(accepted));
  Say("Hello there!");
  ASSERT_EQ(r->status, 200) << r->body;
  const Json j = r->json();
  EXPECT_EQ(j["object"], "chat.completion");
  EXPECT_TRUE(j["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(j["model"], "demo");
  EXPECT_EQ(j["system_fingerprint"], "f32-0000000000001234-5a5a5a5a5a5a");
  EXPECT_EQ(j["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(j["choices"][0]["message"]["content"], "Hello there!");
  EXPECT_EQ(j["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(j["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(j["usage"]["prompt_tokens"], last().prompt.size());
  EXPECT_EQ(j["usage"]["completion_tokens"], Ids("Hello there!").size() + 1);
  EXPECT_EQ(j["usage"]["total_tokens"], last().prompt.size() + Ids("Hello there!").size() + 1);
  EXPECT_EQ(j["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
  EXPECT_EQ(gateway_->router()->open_requests(), 0u);
}

TEST_F(GatewayTest, StreamsAChatWithRoleDeltasFinishAndUsage) {
  auto r = Chat({{"stream", true}, {"stream_options", {{"include_usage", true}}}});
  Say("Hello wörld 👩‍🚀!");
  const auto events = r->events();
  EXPECT_EQ(r->header("Content-Type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(StreamedContent(events), "Hello wörld 👩‍🚀!");
  for (const Json& e : events) EXPECT_EQ(e["object"], "chat.completion.chunk");
  const Json& end = events[events.size() - 2];
  EXPECT_EQ(end["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(end["choices"][0]["delta"].empty());
  EXPECT_TRUE(end["usage"].is_null());
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], Ids("Hello wörld 👩‍🚀!").size() + 1);
  EXPECT_TRUE(r->ended);
}

TEST_F(GatewayTest, WritesOncePerStepAndStream) {
  auto r = Chat({{"stream", true}, {"n", 2}});
  SessionEvents step;
  for (uint32_t c = 0; c < 2; ++c) {
    for (uint32_t i = 0; i < 3; ++i)
      step.tokens.push_back(
          Event(last(), c, static_cast<Position>(last().prompt.size()) + i, Ids("a b c")[i]));
  }
  worker_->sink->OnStep(std::move(step));
  EXPECT_EQ(r->writes.size(), 1u);
  Finish(worker_, last(), FinishReason::kLength, 0);
  Finish(worker_, last(), FinishReason::kLength, 1);
  EXPECT_EQ(StreamedContent(r->events(), 0), "a b c");
  EXPECT_EQ(StreamedContent(r->events(), 1), "a b c");
}

TEST_F(GatewayTest, LeavesUsageOutOfAStreamUnlessAsked) {
  auto r = Chat({{"stream", true}});
  Say("Hi");
  for (const Json& e : r->events()) EXPECT_FALSE(e.contains("usage"));
}

TEST_F(GatewayTest, SendsAllSamplingOptionsToTheWorker) {
  Chat({{"temperature", 0.5},
        {"top_p", 0.9},
        {"top_k", 40},
        {"min_p", 0.05},
        {"presence_penalty", 1.5},
        {"frequency_penalty", -1},
        {"repetition_penalty", 1.2},
        {"logit_bias", {{"50", -100}, {"7", 5.5}}},
        {"max_completion_tokens", 20},
        {"max_tokens", 30},
        {"min_tokens", 3},
        {"n", 2},
        {"stop_token_ids", {9}},
        {"seed", -1},
        {"ignore_eos", true},
        {"logprobs", true},
        {"top_logprobs", 20}});
  const SessionSubmit& s = last();
  EXPECT_EQ(s.sampling.temperature, 0.5);
  EXPECT_EQ(s.sampling.top_p, 0.9);
  EXPECT_EQ(s.sampling.top_k, 40u);
  EXPECT_EQ(s.sampling.min_p, 0.05);
  EXPECT_EQ(s.sampling.presence_penalty, 1.5);
  EXPECT_EQ(s.sampling.frequency_penalty, -1);
  EXPECT_EQ(s.sampling.repetition_penalty, 1.2);
  ASSERT_EQ(s.sampling.logit_bias.size(), 2u);
  EXPECT_EQ(s.sampling.logit_bias[0].first, 7u);
  EXPECT_EQ(s.sampling.logit_bias[0].second, 5.5f);
  EXPECT_EQ(s.sampling.seed, UINT64_MAX);
  EXPECT_EQ(s.max_tokens, 20u);  // the newer name wins
  EXPECT_EQ(s.min_tokens, 3u);
  EXPECT_EQ(s.n, 2u);
  EXPECT_EQ(s.stop_ids, std::vector<TokenId>{9});  // ignore_eos took the model's own away
  EXPECT_EQ(s.top_logprobs, 20);
}

TEST_F(GatewayTest, GivesEachRequestWithoutASeedItsOwn) {
  Chat();
  Chat();
  EXPECT_NE(worker_->submitted[0].sampling.seed, worker_->submitted[1].sampling.seed);
  EXPECT_NE(worker_->submitted[0].request, worker_->submitted[1].request);
}

TEST_F(GatewayTest, ReportsChatLogprobsWithBytesAndTopTokens) {
  auto r = Chat({{"logprobs", true}, {"top_logprobs", 3}});
  Say("A 👩 b");
  const Json content = r->json()["choices"][0]["logprobs"]["content"];
  const auto ids = Ids("A 👩 b");
  ASSERT_EQ(content.size(), ids.size());  // the end token is not part of the text
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    const SessionToken e = Event(last(), 0, static_cast<Position>(last().prompt.size() + i), ids[i]);
    EXPECT_EQ(static_cast<float>(content[i]["logprob"].get<double>()), e.logprob);
    EXPECT_EQ(content[i]["token"], DemoTokenizer()->TokenText(ids[i]));
    for (const int b : content[i]["bytes"]) bytes += static_cast<char>(b);
    ASSERT_EQ(content[i]["top_logprobs"].size(), 3u);
    EXPECT_EQ(static_cast<float>(content[i]["top_logprobs"][2]["logprob"].get<double>()), e.top[2].logprob);
  }
  EXPECT_EQ(bytes, "A 👩 b");
}

TEST_F(GatewayTest, StreamsTheSameLogprobsAsItAnswersWhole) {
  const Json options = {{"logprobs", true}, {"top_logprobs", 2}, {"stop", {"END"}}, {"seed", 1}};
  auto whole = Chat(options);
  const SessionSubmit first = last();
  Json streaming = options;
  streaming["stream"] = true;
  auto streamed = Chat(streaming);
  for (const SessionSubmit& r : {first, last()}) Tokens(worker_, r, Ids("It 👩 is the E END of it"));
  Json joined = Json::array();
  for (const Json& e : streamed->events()) {
    if (e["choices"][0]["logprobs"].is_null()) continue;
    for (const Json& t : e["choices"][0]["logprobs"]["content"]) joined.push_back(t);
  }
  EXPECT_EQ(joined, whole->json()["choices"][0]["logprobs"]["content"]);
  EXPECT_EQ(whole->json()["choices"][0]["message"]["content"], "It 👩 is the E ");
  EXPECT_EQ(StreamedContent(streamed->events()), "It 👩 is the E ");
}

TEST_F(GatewayTest, StopsAtAStopStringAcrossTokensAndCancelsTheChoice) {
  auto r = Chat({{"stop", "lo wo"}, {"n", 2}});
  const SessionSubmit request = last();
  Tokens(worker_, request, Ids("Hello world and more"), 0);
  ASSERT_EQ(worker_->cancelled.size(), 1u);
  EXPECT_EQ(worker_->cancelled[0], std::pair(request.request, 0));
  SayTo(request, "Hello", 1);
  EXPECT_EQ(r->json()["choices"][0]["message"]["content"], "Hel");
  EXPECT_EQ(r->json()["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(r->json()["choices"][1]["message"]["content"],
            "Hello");  // "lo" was held back and given at the end
}

TEST_F(GatewayTest, CountsTokensOnlyUpToTheStopString) {
  auto r = Complete({{"stop", {"never", "."}}, {"include_stop_str_in_output", true}});
  Tokens(worker_, last(), Ids("One. Two. Three."));
  EXPECT_EQ(r->json()["choices"][0]["text"], "One.");
  EXPECT_EQ(r->json()["usage"]["completion_tokens"], Ids("One.").size());
}

TEST_F(GatewayTest, IgnoresStopStringsBeforeMinTokens) {
  auto r = Complete({{"stop", "."}, {"min_tokens", Ids("One.").size() + 1}});
  Tokens(worker_, last(), Ids("One. Two. Three."));
  EXPECT_EQ(r->json()["choices"][0]["text"], "One. Two");
}

TEST_F(GatewayTest, ShowsStopAndSpecialTokensOnlyWhenAsked) {
  auto hidden = Complete({{"stop_token_ids", {2046}}});
  Tokens(worker_, last(), {Ids("a")[0], 1, 2046});
  Finish(worker_, last(), FinishReason::kStop);
  EXPECT_EQ(hidden->json()["choices"][0]["text"], "a");
  auto shown = Complete(
      {{"stop_token_ids", {2046}}, {"skip_special_tokens", false}, {"include_stop_str_in_output", true}});
  Tokens(worker_, last(), {Ids("a")[0], 1, 2046});
  Finish(worker_, last(), FinishReason::kStop);
  EXPECT_EQ(shown->json()["choices"][0]["text"], "a<|im_start|><tool_call>");
}

TEST_F(GatewayTest, EndsAtMaxTokensWithLength) {
  auto r = Complete({{"max_tokens", 2}});
  EXPECT_EQ(last().max_tokens, 2u);
  Tokens(worker_, last(), {Ids("a")[0], Ids("b")[0]});
  Finish(worker_, last(), FinishReason::kLength);
  EXPECT_EQ(r->json()["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(r->json()["object"], "text_completion");
}

TEST_F(GatewayTest, NeverSplitsACharacterInAStream) {
  auto r = Chat({{"stream", true}});
  Say("👩‍🚀é你");
  for (const std::string& write : r->writes) EXPECT_TRUE(IsUtf8(write));
  EXPECT_EQ(StreamedContent(r->events()), "👩‍🚀é你");
}

TEST_F(GatewayTest, EndsAnUnfinishedCharacterWithAReplacement) {
  auto r = Chat({{"max_tokens", 1}});
  Tokens(worker_, last(), {Ids("👩")[0]});
  Finish(worker_, last(), FinishReason::kLength);
  EXPECT_EQ(r->json()["choices"][0]["message"]["content"], "\xEF\xBF\xBD");
}

TEST_F(GatewayTest, TakesPromptsInAllFourFormsAndIndexesChoices) {
  for (const Json& prompt : {Json("ab"), Json({"ab", "cd"}), Json({5, 6, 7}), Json({{5, 6}, {7, 8}})}) {
    worker_->submitted.clear();
    auto r = Complete({{"prompt", prompt}, {"n", 2}});
    const auto requests = worker_->submitted;
    for (size_t p = 0; p < requests.size(); ++p) {
      for (uint32_t c = 0; c < 2; ++c) SayTo(requests[p], std::to_string(p * 2 + c), c);
    }
    const Json choices = r->json()["choices"];
    ASSERT_EQ(choices.size(), requests.size() * 2);
    for (size_t i = 0; i < choices.size(); ++i) {
      EXPECT_EQ(choices[i]["index"], i);
      EXPECT_EQ(choices[i]["text"], std::to_string(i));
    }
  }
  EXPECT_EQ(worker_->submitted[1].prompt, (std::vector<TokenId>{7, 8}));
}

TEST_F(GatewayTest, ReportsCompletionLogprobsInTheOldShape) {
  auto r = Complete({{"logprobs", 2}});
  Say("é bc");
  const Json l = r->json()["choices"][0]["logprobs"];
  const auto ids = Ids("é bc");
  ASSERT_EQ(l["tokens"].size(), ids.size());
  TextStream stream(DemoTokenizer(), true);
  std::string text;  // a token's text begins where the whole characters before it end
  for (size_t i = 0; i < ids.size(); ++i) {
    const SessionToken e = Event(last(), 0, static_cast<Position>(last().prompt.size() + i), ids[i]);
    EXPECT_EQ(static_cast<float>(l["token_logprobs"][i].get<double>()), e.logprob);
    EXPECT_EQ(l["top_logprobs"][i].size(), 2u);
    EXPECT_EQ(l["text_offset"][i], Characters(text));
    text += stream.Step(ids[i]);
  }
  EXPECT_EQ(text, "é bc");
}

// Echo with prompt logprobs, also without any new token.
TEST_F(GatewayTest, EchoesThePromptWithItsLogprobs) {
  for (const bool stream : {false, true}) {
    auto r = Complete(
        {{"prompt", "Once upon a"}, {"echo", true}, {"logprobs", 1}, {"max_tokens", 0}, {"stream", stream}});
    const SessionSubmit s = last();
    EXPECT_EQ(s.max_tokens, 0u);
    EXPECT_TRUE(s.prompt_logprobs);
    SessionEvents step;
    for (Position p = 1; p < s.prompt.size(); ++p) step.tokens.push_back(Event(s, 0, p, s.prompt[p]));
    step.finishes.push_back({s.request, 0, FinishReason::kLength});
    worker_->sink->OnStep(std::move(step));
    ASSERT_EQ(r->status, 200) << r->body;
    const Json choice = stream ? r->events()[0]["choices"][0] : r->json()["choices"][0];
    EXPECT_EQ(choice["text"], "Once upon a");
    EXPECT_EQ(choice["finish_reason"], "length");
    const Json l = choice["logprobs"];
    ASSERT_EQ(l["tokens"].size(), s.prompt.size());
    EXPECT_TRUE(l["token_logprobs"][0].is_null());
    EXPECT_TRUE(l["top_logprobs"][0].is_null());
    EXPECT_EQ(static_cast<float>(l["token_logprobs"][1].get<double>()), Event(s, 0, 1, s.prompt[1]).logprob);
  }
  EXPECT_EQ(gateway_->router()->open_requests(), 0u);
}

TEST_F(GatewayTest, EchoOffsetsGoOnIntoTheAnswer) {
  auto r = Complete({{"prompt", "ab"}, {"echo", true}, {"logprobs", 0}});
  const SessionSubmit s = last();
  for (Position p = 1; p < s.prompt.size(); ++p) {
    SessionEvents step;
    step.tokens.push_back(Event(s, 0, p, s.prompt[p]));
    worker_->sink->OnStep(std::move(step));
  }
  SayTo(s, "x");
  const Json choice = r->json()["choices"][0];
  EXPECT_EQ(choice["text"], "abx");
  EXPECT_EQ(choice["logprobs"]["text_offset"].back(), 2);
  EXPECT_EQ(choice["logprobs"]["top_logprobs"].back().size(), 1u);  // the sampled token
}

TEST_F(GatewayTest, ReturnsTheBestOfBestOf) {
  auto r = Complete({{"best_of", 3}, {"n", 1}});
  const SessionSubmit s = last();
  EXPECT_EQ(s.n, 3u);
  EXPECT_EQ(s.top_logprobs, 0);  // needed to compare
  const char* words[] = {"a", "b", "c"};
  for (uint32_t c = 0; c < 3; ++c) {
    SessionEvents step;
    SessionToken e = Event(s, c, static_cast<Position>(s.prompt.size()), Ids(words[c])[0]);
    e.logprob = c == 1 ? -0.5f : -2.0f;
    step.tokens.push_back(e);
    step.finishes.push_back({s.request, c, FinishReason::kLength});
    worker_->sink->OnStep(std::move(step));
  }
  ASSERT_EQ(r->json()["choices"].size(), 1u);
  EXPECT_EQ(r->json()["choices"][0]["text"], "b");
  EXPECT_TRUE(r->json()["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(r->json()["usage"]["completion_tokens"], 3);
}

const Json kTools = {
    {{"type", "function"}, {"function", {{"name", "get_weather"}, {"parameters", {{"type", "object"}}}}}}};
const std::string kCall =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

TEST_F(GatewayTest, ReturnsToolCallsWholeAndStreamed) {
  auto whole = Chat({{"tools", kTools}, {"tool_choice", "auto"}});
  EXPECT_NE(DemoTokenizer()->Decode(last().prompt, false)->find("get_weather"), std::string::npos);
  Say(kCall);
  const Json message = whole->json()["choices"][0]["message"];
  EXPECT_EQ(whole->json()["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_TRUE(message["content"].is_null());
  EXPECT_EQ(message["tool_calls"][0]["type"], "function");
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "get_weather");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], R"({"city": "Oslo"})");

  auto streamed = Chat({{"tools", kTools}, {"stream", true}});
  Say("I look. " + kCall + kCall);
  const auto events = streamed->events();
  EXPECT_EQ(StreamedContent(events), "I look.");
  std::vector<Json> calls;
  for (const Json& e : events) {
    if (!e["choices"][0]["delta"].contains("tool_calls")) continue;
    for (const Json& call : e["choices"][0]["delta"]["tool_calls"]) calls.push_back(call);
  }
  // Each call: first id and name, then pieces of the arguments.
  std::vector<std::string> arguments(2), ids;
  for (const Json& call : calls) {
    ASSERT_LT(call["index"], 2);
    if (call.contains("id")) {
      ids.push_back(call["id"]);
      EXPECT_EQ(call["index"], ids.size() - 1);
      EXPECT_EQ(call["type"], "function");
      EXPECT_EQ(call["function"]["name"], "get_weather");
    } else {
      EXPECT_FALSE(call["function"].contains("name"));
    }
    arguments[call["index"].get<size_t>()] += call["function"]["arguments"];
  }
  EXPECT_GT(calls.size(), 4u);
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_EQ(arguments, std::vector<std::string>(2, R"({"city": "Oslo"})"));
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "tool_calls");
}

TEST_F(GatewayTest, ReturnsReasoningWholeAndStreamed) {
  Make({}, {"hermes", "think"});
  worker_ = AddWorker();
  const std::string said = "<think>\nHm, 你好?\n</think>\n\nHello. " + kCall;
  auto whole = Chat({{"tools", kTools}, {"logprobs", true}});
  Say(said);
  const Json message = whole->json()["choices"][0]["message"];
  EXPECT_EQ(message["reasoning_content"], "Hm, 你好?");
  EXPECT_EQ(message["content"], "Hello.");
  EXPECT_EQ(message["tool_calls"].size(), 1u);
  EXPECT_EQ(whole->json()["choices"][0]["logprobs"]["content"].size(), Ids(said).size());  // of all tokens

  auto streamed = Chat({{"tools", kTools}, {"stream", true}});
  Say(said);
  std::string reasoning, arguments;
  for (const Json& e : streamed->events()) {
    const Json& delta = e["choices"][0]["delta"];
    reasoning += delta.value("reasoning_content", "");
    for (const Json& call : delta.value("tool_calls", Json::array()))
      arguments += call["function"]["arguments"];
  }
  EXPECT_EQ(reasoning, message["reasoning_content"]);
  EXPECT_EQ(StreamedContent(streamed->events()), message["content"]);
  EXPECT_EQ(arguments, message["tool_calls"][0]["function"]["arguments"]);
}

TEST_F(GatewayTest, AnswersNullContentWhenOnlyReasoningCame) {
  Make({}, {"none", "think"});
  worker_ = AddWorker();
  auto r = Chat({{"max_tokens", 5}});
  Tokens(worker_, last(), Ids("<think>so it goes"));
  Finish(worker_, last(), FinishReason::kLength);
  EXPECT_EQ(r->json()["choices"][0]["message"]["reasoning_content"], "so it goes");
  EXPECT_TRUE(r->json()["choices"][0]["message"]["content"].is_null());
}

// The demo's <|im_start|> and <|im_end|> are special; a kept one reaches the text, the others do not.
TEST(Choice, KeepsTheSpecialTokensItsParserNeeds) {
  OutputFormat format = *ChooseFormat("hermes", "none", "", "", *DemoTokenizer());
  EXPECT_TRUE(format.kept_with_tools->empty());  // its markers are no special tokens here
  format.tools = nullptr;
  format.think_open = "<|im_start|>";
  format.think_close = "|END|";
  format.kept = std::make_shared<const std::vector<TokenId>>(std::vector<TokenId>{1});
  ApiRequest request;
  request.format = std::make_shared<const OutputFormat>(format);
  request.parser.tools = false;
  Choice choice(request, DemoTokenizer());
  SessionSubmit r;
  std::vector<TokenId> ids = {2, 1};  // the end token is left out, the marker is read
  for (const TokenId id : Ids("why|END|Hi")) ids.push_back(id);
  for (uint32_t i = 0; i < ids.size(); ++i) choice.OnToken(Event(r, 0, i, ids[i]));
  choice.OnFinish(FinishReason::kStop);
  const Delta d = choice.Take();
  EXPECT_EQ(d.reasoning, "why");
  EXPECT_EQ(d.content, "Hi");
}

TEST_F(GatewayTest, SendsUsageWithEveryChunkWhenAsked) {
  auto r = Chat(
      {{"stream", true}, {"stream_options", {{"include_usage", true}, {"continuous_usage_stats", true}}}});
  Say("Hello there");
  const auto events = r->events();
  int64_t last_count = 0;
  for (const Json& e : events) {
    ASSERT_TRUE(e["usage"].is_object()) << e;
    EXPECT_GE(e["usage"]["completion_tokens"], last_count);
    last_count = e["usage"]["completion_tokens"];
  }
  EXPECT_EQ(last_count, static_cast<int64_t>(Ids("Hello there").size() + 1));
}

TEST_F(GatewayTest, KeepsToolsOutWithToolChoiceNone) {
  auto r = Chat({{"tools", kTools}, {"tool_choice", "none"}});
  EXPECT_EQ(DemoTokenizer()->Decode(last().prompt, false)->find("get_weather"), std::string::npos);
  Say(kCall);
  EXPECT_EQ(r->json()["choices"][0]["message"]["content"], kCall);
  EXPECT_EQ(r->json()["choices"][0]["finish_reason"], "stop");
}

TEST_F(GatewayTest, ReturnsOneCallWithoutParallelToolCalls) {
  auto r = Chat({{"tools", kTools}, {"parallel_tool_calls", false}});
  Say(kCall + kCall);
  EXPECT_EQ(r->json()["choices"][0]["message"]["tool_calls"].size(), 1u);
}

TEST_F(GatewayTest, RendersContentPartsDevelopersToolsAndCalls) {
  Chat({{"messages",
         {{{"role", "developer"}, {"content", "Be brief."}},
          {{"role", "user"},
           {"content", {{{"type", "text"}, {"text", "one"}}, {{"type", "text"}, {"text", "two"}}}}},
          {{"role", "assistant"},
           {"content", nullptr},
           {"tool_calls",
            {{{"id", "1"},
              {"type", "function"},
              {"function", {{"name", "f"}, {"arguments", "{\"b\":1,\"a\":2}"}}}}}}},
          {{"role", "tool"}, {"tool_call_id", "1"}, {"content", "3"}}}}});
  EXPECT_EQ(*DemoTokenizer()->Decode(last().prompt, false),
            "<|im_start|>system\nBe "
            "brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
            "{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": "
            "2}}\n</tool_call><|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(GatewayTest, ListsModels) {
  EXPECT_EQ(Send("GET", "/v1/models")->json()["data"][0]["id"], "demo");
  EXPECT_EQ(Send("GET", "/v1/models/demo")->json()["max_model_len"], 768);
  EXPECT_EQ(Send("GET", "/v1/models/other")->status, 404);
  EXPECT_EQ(Send("GET", "/v1/models/other")->json()["error"]["code"], "model_not_found");
}

TEST_F(GatewayTest, TokenizesAndDetokenizes) {
  const Json t = Send("POST", "/tokenize", R"({"prompt":"Hello wörld","return_token_strs":true})")->json();
  EXPECT_EQ(t["tokens"].get<std::vector<TokenId>>(), Ids("Hello wörld"));
  EXPECT_EQ(t["count"], Ids("Hello wörld").size());
  EXPECT_EQ(t["token_strs"].size(), t["count"]);
  const Json chat = Send("POST", "/tokenize", R"({"messages":[{"role":"user","content":"Hi"}]})")->json();
  EXPECT_EQ(chat["tokens"].get<std::vector<TokenId>>(),
            Ids("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
  EXPECT_EQ(Send("POST", "/detokenize", Json{{"tokens", Ids("Hello wörld")}}.dump())->json()["prompt"],
            "Hello wörld");
}

TEST_F(GatewayTest, TakesOrMakesARequestId) {
  EXPECT_EQ(Send("GET", "/version", "", {{"X-Request-Id", "abc-1"}})->header("x-request-id"), "abc-1");
  EXPECT_EQ(Send("GET", "/version", "", {{"x-request-id", "bad id\n"}})->header("x-request-id").size(), 32u);
  auto r = Chat();
  Say("x");
  EXPECT_EQ(r->header("x-request-id"), last().request_id);
}

TEST_F(GatewayTest, CountsWhatItDid) {
  auto r = Chat({{"stream", true}});
  Say("Hello there");
  EXPECT_EQ(Metric("consilium_gateway_requests_total{endpoint=\"chat\",status=\"200\"}"), 1);
  EXPECT_EQ(Metric("consilium_gateway_generated_tokens_total"),
            static_cast<double>(Ids("Hello there").size() + 1));
  EXPECT_EQ(Metric("consilium_gateway_ttft_seconds_count"), 1);
  EXPECT_EQ(Metric("vllm:request_success_total"), 1);
  EXPECT_EQ(Metric("vllm:time_to_first_token_seconds_count"), 1);
}

}  // namespace
}  // namespace consilium::gateway
