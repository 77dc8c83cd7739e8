#include "services/cli/api_client.h"

#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "services/cli/http_client.h"

namespace consilium {
namespace {

using Json = nlohmann::json;

// The message of an OpenAI error body, or the body's beginning.
std::string ErrorText(int status, const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  std::string text = body.substr(0, 300);
  if (json.is_object() && json.contains("error") && json["error"].is_object()) {
    text = json["error"].value("message", text);
  }
  return "HTTP " + std::to_string(status) + ": " + text;
}

absl::Status FromHttp(const HttpAnswer& answer) {
  const std::string text = ErrorText(answer.status, answer.body);
  if (answer.status == 429) return ResourceExhausted(text);
  return answer.status >= 500 ? Unavailable(text) : InvalidArgument(text);
}

// Streams a request; each event's JSON goes to on_json. An error event or a stream without [DONE] is an
// error.
absl::Status StreamJson(HttpClient* http, const std::string& path, const Json& body,
                        const std::function<void(const Json&)>& on_json) {
  SseReader reader;
  bool done = false;
  absl::Status failed;
  const auto on_data = [&](std::string_view data) {
    if (data == "[DONE]") {
      done = true;
      return true;
    }
    const Json json = Json::parse(data, nullptr, false);
    if (!json.is_object()) {
      failed = DataLoss("not an event: " + std::string(data.substr(0, 200)));
    } else if (json.contains("error")) {
      failed =
          Unavailable(json["error"].is_object() ? json["error"].value("message", json.dump()) : json.dump());
    } else {
      on_json(json);
    }
    return failed.ok();
  };
  const auto answer =
      http->Stream(path, body.dump(), [&](std::string_view bytes) { return reader.Feed(bytes, on_data); });
  RETURN_IF_ERROR(failed);
  if (!answer.ok()) return answer.status();
  if (answer->status != 200) return FromHttp(*answer);
  return done ? absl::OkStatus() : DataLoss("the stream ended without [DONE]");
}

}  // namespace

ApiClient::ApiClient() = default;
ApiClient::~ApiClient() = default;

absl::StatusOr<std::unique_ptr<ApiClient>> ApiClient::Open(ApiTarget target) {
  ASSIGN_OR_RETURN(HttpUrl url, ParseUrl(target.url));
  auto client = std::unique_ptr<ApiClient>(new ApiClient);
  client->prefix_ = url.path;
  while (!client->prefix_.empty() && client->prefix_.back() == '/') client->prefix_.pop_back();
  if (client->prefix_.size() >= 3 && client->prefix_.substr(client->prefix_.size() - 3) == "/v1") {
    client->prefix_.resize(client->prefix_.size() - 3);
  }
  std::vector<std::pair<std::string, std::string>> headers;
  if (!target.api_key.empty()) headers.emplace_back("Authorization", "Bearer " + target.api_key);
  client->http_ = std::make_unique<HttpClient>(url, headers, target.timeout_ms);
  client->model_ = target.model;
  if (!client->model_.empty()) return client;
  ASSIGN_OR_RETURN(const HttpAnswer answer, client->http_->Call("GET", client->prefix_ + "/v1/models", ""));
  if (answer.status != 200) return FromHttp(answer);
  const Json json = Json::parse(answer.body, nullptr, false);
  const Json list = json.is_object() ? json.value("data", Json::array()) : Json::array();
  if (!list.is_array() || list.empty() || !list[0].is_object()) return DataLoss("the server has no model");
  client->model_ = list[0].value("id", "");
  return client;
}

absl::StatusOr<std::string> ApiClient::Chat(const std::vector<ChatMessage>& messages,
                                            const ChatSampling& sampling,
                                            const std::function<void(std::string_view)>& on_text) {
  Json body = {
      {"model", model_}, {"stream", true}, {"temperature", sampling.temperature}, {"top_p", sampling.top_p}};
  if (sampling.max_tokens != 0) body["max_tokens"] = sampling.max_tokens;
  if (sampling.seed >= 0) body["seed"] = sampling.seed;
  for (const ChatMessage& m : messages)
    body["messages"].push_back({{"role", m.role}, {"content", m.content}});
  std::string text;
  RETURN_IF_ERROR(StreamJson(http_.get(), prefix_ + "/v1/chat/completions", body, [&](const Json& event) {
    const Json* choices = event.contains("choices") ? &event["choices"] : nullptr;
    if (choices == nullptr || !choices->is_array() || choices->empty()) return;
    const Json delta = (*choices)[0].value("delta", Json::object());
    if (!delta.contains("content") || !delta["content"].is_string()) return;
    const std::string part = delta["content"];
    text += part;
    on_text(part);
  }));
  return text;
}

absl::StatusOr<StreamUsage> ApiClient::Complete(const std::vector<uint32_t>& prompt, uint32_t tokens,
                                                int64_t seed, double temperature,
                                                const std::function<void()>& on_event) {
  const Json body = {{"model", model_},
                     {"prompt", prompt},
                     {"max_tokens", tokens},
                     {"ignore_eos", true},
                     {"temperature", temperature},
                     {"seed", seed},
                     {"stream", true},
                     {"stream_options", {{"include_usage", true}}}};
  StreamUsage usage;
  RETURN_IF_ERROR(StreamJson(http_.get(), prefix_ + "/v1/completions", body, [&](const Json& event) {
    if (event.contains("choices") && !event["choices"].empty()) on_event();
    if (!event.contains("usage") || !event["usage"].is_object()) return;
    usage.prompt_tokens = event["usage"].value("prompt_tokens", uint64_t{0});
    usage.completion_tokens = event["usage"].value("completion_tokens", uint64_t{0});
  }));
  return usage;
}

}  // namespace consilium
