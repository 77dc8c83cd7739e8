// Chat and completions bodies to ApiRequest. Options and their ranges: docs/API.md.
#include <algorithm>
#include <charconv>
#include <limits>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "services/gateway/api.h"
#include "services/gateway/json_in.h"
#include "services/gateway/parse_internal.h"

namespace consilium::gateway {
namespace {

// Fields that would change the answer and are not served: refused, never silently ignored.
constexpr std::string_view kRefused[] = {"functions",
                                         "function_call",
                                         "guided_json",
                                         "guided_regex",
                                         "guided_choice",
                                         "guided_grammar",
                                         "structured_outputs",
                                         "guided_decoding_backend",
                                         "audio",
                                         "chat_template",
                                         "suffix",
                                         "logits_processors",
                                         "bad_words",
                                         "allowed_token_ids",
                                         "truncate_prompt_tokens",
                                         "prompt_logprobs",
                                         "prompt_embeds",
                                         "web_search_options",
                                         "mm_processor_kwargs"};

void RefuseUnserved(Fields* f) {
  for (const std::string_view name : kRefused) {
    const std::string key(name);
    if (f->Get(key) != nullptr)
      f->Fail(BadRequest("'" + key + "' is not supported by this server.", key, "unsupported_parameter"));
  }
  for (const char* key : {"use_beam_search", "continue_final_message"}) {
    if (f->Bool(key, false))
      f->Fail(BadRequest(std::string("'") + key + "' is not supported.", key, "unsupported_parameter"));
  }
  const Json* format = f->Get("response_format");
  if (format == nullptr) return;
  const auto type = format->is_object() ? format->find("type") : format->end();
  if (!format->is_object() || type == format->end() || !type->is_string())
    return f->Wrong("response_format", *format, "an object with a 'type'");
  if (*type != "text")
    f->Fail(BadRequest("'response_format' of type '" + type->get<std::string>() +
                           "' is not supported by this server yet; use {\"type\": \"text\"}.",
                       "response_format", "unsupported_parameter"));
}

void ReadStops(Fields* f, const ModelInfo& model, const ParseLimits& limits, ApiRequest* out) {
  if (const Json* stop = f->Get("stop")) {
    const Json list = stop->is_string() ? Json::array({*stop}) : *stop;
    if (!list.is_array()) return f->Wrong("stop", *stop, "a string or an array of strings");
    for (const Json& s : list) {
      if (!s.is_string()) return f->Wrong("stop", s, "a string or an array of strings");
      const auto text = s.get<std::string>();
      if (text.empty() || text.size() > kStopBytesMax)
        return f->Fail(BadRequest(
            "Invalid 'stop': each string must have 1 to " + std::to_string(kStopBytesMax) + " bytes.", "stop",
            "invalid_value"));
      out->stop.push_back(text);
    }
    if (out->stop.size() > kStopStringsMax)
      return f->Fail(BadRequest("Invalid 'stop': array too long. Expected an array with maximum length " +
                                    std::to_string(kStopStringsMax) + ", but got " +
                                    std::to_string(out->stop.size()) + ".",
                                "stop", "array_above_max_length"));
  }
  if (!f->Bool("ignore_eos", false)) out->stop_ids = model.stop_ids;
  if (const Json* ids = f->Get("stop_token_ids")) {
    if (!ids->is_array()) return f->Wrong("stop_token_ids", *ids, "an array of integers");
    if (ids->size() > 256)
      return f->Fail(BadRequest("'stop_token_ids' takes at most 256 ids.", "stop_token_ids"));
    for (const Json& id : *ids) {
      const auto x = Fields::AsInt(id);
      if (!x || *x < 0 || *x >= limits.vocab)
        return f->Fail(BadRequest(
            "Invalid 'stop_token_ids': expected token ids below " + std::to_string(limits.vocab) + ".",
            "stop_token_ids", "invalid_value"));
      out->stop_ids.push_back(static_cast<TokenId>(*x));
    }
  }
  out->include_stop = f->Bool("include_stop_str_in_output", false);
  out->skip_special = f->Bool("skip_special_tokens", true);
  f->Bool("spaces_between_special_tokens", true);  // no effect: tokens are joined without spaces
}

void ReadLogitBias(Fields* f, const ParseLimits& limits, ApiRequest* out) {
  const Json* bias = f->Get("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) return f->Wrong("logit_bias", *bias, "an object");
  if (bias->size() > kLogitBiasMax)
    return f->Fail(
        BadRequest("'logit_bias' takes at most " + std::to_string(kLogitBiasMax) + " tokens.", "logit_bias"));
  for (const auto& [key, value] : bias->items()) {
    uint32_t id = 0;
    const auto [end, ec] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (ec != std::errc() || end != key.data() + key.size() || id >= limits.vocab)
      return f->Fail(BadRequest("Invalid key in 'logit_bias': '" + key.substr(0, 40) +
                                    "'. Expected token ids below " + std::to_string(limits.vocab) + ".",
                                "logit_bias", "invalid_value"));
    if (!value.is_number()) return f->Wrong("logit_bias." + key, value, "a number");
    const double x = value.get<double>();
    if (!(x >= -100 && x <= 100)) return f->OutOfRange("logit_bias." + key, value.dump(), "-100", "100");
    out->sampling.logit_bias.push_back({id, static_cast<float>(x)});
  }
  std::sort(out->sampling.logit_bias.begin(), out->sampling.logit_bias.end());
}

void ReadSampling(Fields* f, ApiRequest* out) {
  Sampling& s = out->sampling;
  s.temperature = f->Number("temperature", 0, 2).value_or(1);
  s.top_p = std::max(f->Number("top_p", 0, 1).value_or(1), 1e-9);  // 0: the best token only
  const int64_t top_k = f->Int("top_k", -1, std::numeric_limits<int32_t>::max()).value_or(0);
  s.top_k = top_k < 0 ? 0 : static_cast<uint32_t>(top_k);
  s.min_p = f->Number("min_p", 0, 1).value_or(0);
  s.presence_penalty = f->Number("presence_penalty", -2, 2).value_or(0);
  s.frequency_penalty = f->Number("frequency_penalty", -2, 2).value_or(0);
  s.repetition_penalty = f->Number("repetition_penalty", 0.01, 10).value_or(1);
  if (const auto seed =
          f->Int("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()))
    out->seed = static_cast<uint64_t>(*seed);
}

void ReadCommon(Fields* f, const ModelInfo& model, const ParseLimits& limits, ApiRequest* out) {
  CheckModel(f, model, true);
  RefuseUnserved(f);
  ReadSampling(f, out);
  ReadStops(f, model, limits, out);
  ReadLogitBias(f, limits, out);
  out->n = static_cast<uint32_t>(f->Int("n", 1, kChoicesMax).value_or(1));
  out->best_of = out->n;
  out->user = f->String("user").value_or("");
  out->stream = f->Bool("stream", false);
  if (const Json* options = f->Get("stream_options")) {
    if (!options->is_object()) return f->Wrong("stream_options", *options, "an object");
    if (!out->stream)
      return f->Fail(BadRequest("The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                                "stream_options"));
    std::optional<ApiError> inner;
    Fields inside(*options, &inner);
    out->include_usage = inside.Bool("include_usage", false);
    out->continuous_usage = inside.Bool("continuous_usage_stats", false) && out->include_usage;
    if (inner) f->Fail(std::move(*inner));
  }
  for (const char* key : {"metadata", "store", "service_tier", "priority", "request_id", "best_of", "echo",
                          "safety_identifier", "prompt_cache_key", "verbosity", "length_penalty"})
    f->Get(key);  // known, without effect here
}

// `given`: max_tokens of the request. Checks what needs the prompts' lengths.
void FitContext(Fields* f, const ParseLimits& limits, std::optional<int64_t> given,
                std::optional<int64_t> fallback, ApiRequest* out) {
  const bool chat = out->endpoint == Endpoint::kChat;
  const uint64_t context = limits.context_tokens;
  out->rest_of_context = !given && !fallback;
  out->max_tokens = static_cast<uint32_t>(given.value_or(fallback.value_or(0)));
  for (const Prompt& prompt : out->prompts) {
    const uint64_t length = prompt.ids.size();
    const uint64_t wanted = out->rest_of_context ? 1 : out->max_tokens;
    if (length + wanted <= context) continue;
    if (!given && fallback && length < context) {  // the default shrinks
      out->rest_of_context = true;
      continue;
    }
    const std::string where = chat ? "messages" : "prompt";
    return f->Fail(
        BadRequest("This model's maximum context length is " + std::to_string(context) +
                       " tokens. However, you requested " + std::to_string(length + wanted) + " tokens (" +
                       std::to_string(length) + " in the " + where + ", " + std::to_string(wanted) +
                       " in the completion). Please reduce the length of the " + where + " or completion.",
                   where, "context_length_exceeded"));
  }
  const auto min_tokens = f->Int("min_tokens", 0, std::numeric_limits<int32_t>::max()).value_or(0);
  for (const Prompt& prompt : out->prompts) {
    if (min_tokens > out->MaxTokens(prompt, limits.context_tokens))
      return f->Fail(
          BadRequest("'min_tokens' must not be greater than 'max_tokens'.", "min_tokens", "invalid_value"));
  }
  out->min_tokens = static_cast<uint32_t>(min_tokens);
}

}  // namespace

std::optional<ApiError> ParseChat(const std::string& body, const ModelInfo& model, const ParseLimits& limits,
                                  ApiRequest* out) {
  Json json;
  if (auto error = ParseBody(body, &json)) return error;
  std::optional<ApiError> error;
  Fields f(json, &error);
  out->endpoint = Endpoint::kChat;
  ReadCommon(&f, model, limits, out);
  const bool logprobs = f.Bool("logprobs", false);
  const auto top = f.Int("top_logprobs", 0, kTopLogprobsMax);
  if (top && !logprobs)
    f.Fail(BadRequest("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs"));
  if (logprobs) out->top_logprobs = static_cast<int32_t>(top.value_or(0));
  out->parallel_tool_calls = f.Bool("parallel_tool_calls", true);
  if (const Json* modalities = f.Get("modalities");
      modalities != nullptr && *modalities != Json::array({"text"}))
    f.Fail(BadRequest("'modalities' other than [\"text\"] are not supported.", "modalities",
                      "unsupported_parameter"));
  auto max_tokens = f.Int("max_completion_tokens", 1, std::numeric_limits<int32_t>::max());
  const auto old_name = f.Int("max_tokens", 1, std::numeric_limits<int32_t>::max());
  if (!max_tokens) max_tokens = old_name;
  out->format = model.format;
  auto prompt = f.ok() ? ChatPrompt(&f, &json, model, limits, &out->parser) : std::nullopt;
  if (prompt) out->prompts.push_back(std::move(*prompt));
  if (f.ok()) FitContext(&f, limits, max_tokens, std::nullopt, out);
  out->ignored = f.Unused();
  return error;
}

std::optional<ApiError> ParseCompletions(const std::string& body, const ModelInfo& model,
                                         const ParseLimits& limits, ApiRequest* out) {
  Json json;
  if (auto error = ParseBody(body, &json)) return error;
  std::optional<ApiError> error;
  Fields f(json, &error);
  out->endpoint = Endpoint::kCompletions;
  if (f.Get("reasoning_effort") != nullptr)
    f.Fail(BadRequest("'reasoning_effort' is not supported here; use /v1/chat/completions.",
                      "reasoning_effort", "unsupported_parameter"));
  ReadCommon(&f, model, limits, out);
  out->top_logprobs = static_cast<int32_t>(f.Int("logprobs", 0, kTopLogprobsMax).value_or(-1));
  out->echo = f.Bool("echo", false);
  out->best_of = static_cast<uint32_t>(f.Int("best_of", 1, kChoicesMax).value_or(out->n));
  if (out->best_of < out->n)
    f.Fail(BadRequest("'best_of' must be greater than or equal to 'n'.", "best_of", "invalid_value"));
  if (out->best_of > out->n && out->stream)
    f.Fail(BadRequest("'best_of' greater than 'n' cannot be streamed.", "best_of", "invalid_value"));
  const auto max_tokens = f.Int("max_tokens", 0, std::numeric_limits<int32_t>::max());
  if (f.ok()) ReadPrompts(&f, model, limits, out);
  if (f.ok() && out->prompts.size() * out->best_of > kRequestChoicesMax)
    f.Fail(BadRequest(
        "'prompt' times 'best_of' gives more than " + std::to_string(kRequestChoicesMax) + " choices.",
        "prompt"));
  if (f.ok()) FitContext(&f, limits, max_tokens, 16, out);
  out->ignored = f.Unused();
  return error;
}

}  // namespace consilium::gateway
