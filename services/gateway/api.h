// A request of the API after validation, and errors in OpenAI's shape.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/text/text.h"
#include "services/gateway/attention_client.h"
#include "services/gateway/parsers/parser_table.h"

namespace consilium::gateway {

inline constexpr uint32_t kPromptsMax = 256;          // prompts of one completions request
inline constexpr uint32_t kRequestChoicesMax = 1024;  // prompts x best_of: streams one request may open
inline constexpr uint32_t kJsonDepthMax = 100;        // below what the template library takes (128)
inline constexpr uint32_t kStopBytesMax = 4096;       // of one stop string: text held back for it
inline constexpr uint32_t kLogitBiasMax = 1024;

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // "": null
  std::string code;   // "": null
  uint32_t retry_after_s = 0;
};
inline ApiError ServerError(int status, std::string message, std::string code = "") {
  ApiError error;
  error.status = status;
  error.message = std::move(message);
  error.type = status == 429 ? "rate_limit_error" : status == 503 ? "service_unavailable" : "server_error";
  error.code = std::move(code);
  if (status == 429 || status == 503) error.retry_after_s = 1;
  return error;
}
std::string ErrorJson(const ApiError& error);

// What the gateway knows of the model from its folder. Immutable.
struct ModelInfo {
  std::string name;  // at the API
  int64_t created = 0;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;  // null: the model has none
  std::string bos_token, eos_token;                   // for the template
  std::shared_ptr<const OutputFormat> format;         // of chat answers; shared with requests
  bool reasoning_effort = false;                      // the template takes it
  std::vector<TokenId> stop_ids;
  uint32_t context_tokens = 0;  // of config.json, until a worker says its own; 0: unknown
  size_t token_bytes_max = 0;   // longest token: a text longer than context x this cannot fit
};
// Of chat answers: names of parsers/parser_table.h.
struct ParserNames {
  std::string tools = "auto", reasoning = "auto";
};
// Reads tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, generation_config.json.
absl::StatusOr<ModelInfo> LoadModelInfo(const std::string& dir, const std::string& name,
                                        const ParserNames& parsers = {});

enum class Endpoint : uint8_t { kChat, kCompletions };

struct Prompt {
  std::vector<TokenId> ids;
  std::optional<std::string> text;  // as given; nullopt: given as ids
};

struct ApiRequest {
  Endpoint endpoint = Endpoint::kChat;
  std::vector<Prompt> prompts;  // at least one
  uint32_t n = 1, best_of = 1;
  std::optional<uint64_t> seed;
  Sampling sampling;        // all but the seed
  uint32_t max_tokens = 0;  // 0 with `rest_of_context`: to be derived from each prompt
  bool rest_of_context = false;
  uint32_t min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<TokenId> stop_ids;
  bool include_stop = false, skip_special = true;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false;
  int32_t top_logprobs = -1;
  bool parallel_tool_calls = true;
  std::shared_ptr<const OutputFormat> format;  // null: the answer is plain text
  ParserContext parser;
  std::string user;
  std::vector<std::string> ignored;  // unknown fields, for the debug log

  // Special tokens that stay in the text for the parsers.
  std::shared_ptr<const std::vector<TokenId>> kept() const {
    return format == nullptr ? nullptr : parser.tools ? format->kept_with_tools : format->kept;
  }
  uint32_t MaxTokens(const Prompt& prompt, uint32_t context_tokens) const {
    return rest_of_context ? context_tokens - static_cast<uint32_t>(prompt.ids.size()) : max_tokens;
  }
};

struct ParseLimits {
  uint32_t context_tokens = 0;
  uint32_t vocab = 0;
};

// Each returns nullopt and fills *out, or the error to answer. Never throws, whatever the body.
std::optional<ApiError> ParseChat(const std::string& body, const ModelInfo& model, const ParseLimits& limits,
                                  ApiRequest* out);
std::optional<ApiError> ParseCompletions(const std::string& body, const ModelInfo& model,
                                         const ParseLimits& limits, ApiRequest* out);
// POST /tokenize and /detokenize: *out is the JSON to answer.
std::optional<ApiError> Tokenize(const std::string& body, const ModelInfo& model, const ParseLimits& limits,
                                 std::string* out);
std::optional<ApiError> Detokenize(const std::string& body, const ModelInfo& model, const ParseLimits& limits,
                                   std::string* out);
// {"id", "object": "model", ...}
std::string ModelJson(const ModelInfo& model, uint32_t context_tokens);

}  // namespace consilium::gateway
