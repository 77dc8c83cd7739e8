// The OpenAI-compatible API as `chat` and `bench` use it.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

class HttpClient;

struct ApiTarget {
  std::string url;  // http://host:port
  std::string api_key;
  std::string model;  // empty: the first of /v1/models
  int timeout_ms = 120000;
};

struct ChatMessage {
  std::string role;
  std::string content;
};

struct ChatSampling {
  double temperature = 1;
  double top_p = 1;
  uint32_t max_tokens = 0;  // 0: as many as fit
  int64_t seed = -1;        // below 0: the server's choice
};

struct StreamUsage {
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
};

class ApiClient {
 public:
  // Connects, and finds the model's name if none was given.
  static absl::StatusOr<std::unique_ptr<ApiClient>> Open(ApiTarget target);
  ~ApiClient();

  const std::string& model() const { return model_; }
  // Streams one answer; returns its whole text. An error of the server comes back as its message.
  absl::StatusOr<std::string> Chat(const std::vector<ChatMessage>& messages, const ChatSampling& sampling,
                                   const std::function<void(std::string_view)>& on_text);
  // Streams exactly `tokens` tokens after a prompt of token ids; on_event at each event that carries a
  // choice.
  absl::StatusOr<StreamUsage> Complete(const std::vector<uint32_t>& prompt, uint32_t tokens, int64_t seed,
                                       double temperature, const std::function<void()>& on_event);

 private:
  ApiClient();
  std::unique_ptr<HttpClient> http_;
  std::string prefix_;  // path before /v1
  std::string model_;
};

}  // namespace consilium
