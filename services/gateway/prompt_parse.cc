// Prompts of requests to tokens: messages, tools and texts; /tokenize and /detokenize; the JSON of errors and
// models.
#include <limits>

#include "common/base/status.h"
#include "services/gateway/api.h"
#include "services/gateway/json_in.h"
#include "services/gateway/json_out.h"
#include "services/gateway/parse_internal.h"

namespace consilium::gateway {
namespace {

// Tokenizes `text`, or fails early if it cannot fit.
std::optional<std::vector<TokenId>> Encode(Fields* f, const ModelInfo& model, const ParseLimits& limits,
                                           const std::string& text, bool add_special,
                                           const std::string& param) {
  if (text.size() / std::max<size_t>(1, model.token_bytes_max) > limits.context_tokens) {
    f->Fail(BadRequest("This model's maximum context length is " + std::to_string(limits.context_tokens) +
                           " tokens. However, your " + param + " of " + std::to_string(text.size()) +
                           " bytes has more. Please reduce its length.",
                       param, "context_length_exceeded"));
    return std::nullopt;
  }
  auto ids = model.tokenizer->Encode(text, add_special);
  if (!ids.ok()) {
    f->Fail(BadRequest(Message(ids.status()), param));
    return std::nullopt;
  }
  return *std::move(ids);
}

std::optional<std::vector<TokenId>> TokenList(const Json& list, uint32_t vocab) {
  std::vector<TokenId> out;
  for (const Json& id : list) {
    const auto x = Fields::AsInt(id);
    if (!x || *x < 0 || *x >= vocab) return std::nullopt;
    out.push_back(static_cast<TokenId>(*x));
  }
  return out;
}

// A message's content: a string, or text parts joined by newlines.
std::optional<Json> Content(Fields* f, const Json& content, const std::string& at) {
  if (content.is_string() || content.is_null()) return content;
  if (!content.is_array()) {
    f->Wrong(at, content, "a string or an array of content parts");
    return std::nullopt;
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || *type != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      f->Fail(BadRequest("Invalid '" + at + "[" + std::to_string(i) +
                             "]': only parts {\"type\": \"text\", \"text\": ...} are supported.",
                         at, "invalid_value"));
      return std::nullopt;
    }
    if (i > 0) text += "\n";
    text += part["text"].get<std::string>();
  }
  return Json(text);
}

// Calls of an assistant's message, with arguments as objects: templates print them.
bool NormalizeCalls(Fields* f, Json* calls, const std::string& at) {
  if (!calls->is_array()) return f->Wrong(at, *calls, "an array"), false;
  for (Json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object() ||
        !call["function"].contains("name") || !call["function"]["name"].is_string())
      return f->Fail(BadRequest("Invalid '" + at + "': expected objects with function.name.", at,
                                "invalid_value")),
             false;
    Json& function = call["function"];
    if (!function.contains("arguments") || function["arguments"].is_null())
      function["arguments"] = Json::object();
    if (!function["arguments"].is_string()) continue;
    Json parsed;
    const std::string text = function["arguments"].get<std::string>();
    if (ParseBody(text.empty() ? "{}" : text, &parsed))
      return f->Fail(
                 BadRequest("Invalid '" + at + ".function.arguments': expected the text of a JSON object.",
                            at, "invalid_value")),
             false;
    function["arguments"] = std::move(parsed);
  }
  return true;
}

std::optional<Json> ReadMessages(Fields* f, Json* body) {
  const Json* given = f->Get("messages");
  if (given == nullptr) {
    f->Fail(BadRequest("Missing required parameter: 'messages'.", "messages", "missing_required_parameter"));
    return std::nullopt;
  }
  if (!given->is_array() || given->empty()) {
    f->Fail(BadRequest("Invalid 'messages': expected an array with at least 1 message.", "messages",
                       "invalid_type"));
    return std::nullopt;
  }
  Json messages = std::move((*body)["messages"]);
  for (size_t i = 0; i < messages.size(); ++i) {
    Json& m = messages[i];
    const std::string at = "messages[" + std::to_string(i) + "]";
    const auto role = m.is_object() ? m.find("role") : m.end();
    if (!m.is_object() || role == m.end() || !role->is_string()) {
      f->Fail(BadRequest("Invalid '" + at + "': expected an object with a 'role'.", at + ".role",
                         "missing_required_parameter"));
      return std::nullopt;
    }
    if (*role == "developer") *role = "system";
    if (*role != "system" && *role != "user" && *role != "assistant" && *role != "tool") {
      f->Fail(
          BadRequest("Invalid value: '" + role->get<std::string>().substr(0, 40) +
                         "'. Supported values are: 'system', 'developer', 'user', 'assistant' and 'tool'.",
                     at + ".role", "invalid_value"));
      return std::nullopt;
    }
    const bool assistant = *role == "assistant";
    const bool calls = assistant && m.contains("tool_calls") && !m["tool_calls"].is_null();
    if (calls && !NormalizeCalls(f, &m["tool_calls"], at + ".tool_calls")) return std::nullopt;
    if (!m.contains("content")) m["content"] = nullptr;
    if (m["content"].is_null() && !assistant) {
      f->Fail(BadRequest("Missing required parameter: '" + at + ".content'.", at + ".content",
                         "missing_required_parameter"));
      return std::nullopt;
    }
    auto content = Content(f, m["content"], at + ".content");
    if (!content) return std::nullopt;
    m["content"] = std::move(*content);
  }
  return messages;
}

// "none" and "auto" only; *use: the template sees the tools and their calls are parsed.
Json ReadTools(Fields* f, bool* use) {
  const Json* tools = f->Get("tools");
  const Json* choice = f->Get("tool_choice");
  bool none = false;
  if (choice != nullptr) {
    const std::string word = choice->is_string() ? choice->get<std::string>() : "";
    none = word == "none";
    if (word == "required" || choice->is_object()) {
      f->Fail(BadRequest(
          "Forcing a tool by 'tool_choice' is not supported by this server yet; use \"auto\" or \"none\".",
          "tool_choice", "unsupported_parameter"));
    } else if (word != "auto" && word != "none") {
      f->Fail(BadRequest("Invalid value for 'tool_choice': expected \"auto\" or \"none\".", "tool_choice",
                         "invalid_value"));
    } else if (word == "auto" && tools == nullptr) {
      f->Fail(BadRequest("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice"));
    }
  }
  *use = false;
  if (tools == nullptr) return nullptr;
  if (!tools->is_array()) return f->Wrong("tools", *tools, "an array"), nullptr;
  for (size_t i = 0; i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    const auto type = tool.is_object() ? tool.find("type") : tool.end();
    if (!tool.is_object() || type == tool.end() || *type != "function" || !tool.contains("function") ||
        !tool["function"].is_object() || !tool["function"].contains("name") ||
        !tool["function"]["name"].is_string()) {
      const std::string at = "tools[" + std::to_string(i) + "]";
      f->Fail(BadRequest(
          "Invalid '" + at + "': expected {\"type\": \"function\", \"function\": {\"name\": ...}}.", at,
          "invalid_value"));
      return nullptr;
    }
  }
  *use = !none && !tools->empty();
  return *use ? *tools : Json(nullptr);
}

// Parameters whose schema says string, for formats that write values without quotes.
void AddStringParameters(const Json& tools, ParserContext* parser) {
  if (!tools.is_array()) return;
  for (const Json& tool : tools) {
    const Json& function = tool["function"];
    const auto schema = function.find("parameters");
    if (schema == function.end() || !schema->is_object()) continue;
    const auto properties = schema->find("properties");
    if (properties == schema->end() || !properties->is_object()) continue;
    for (const auto& [name, property] : properties->items()) {
      if (property.is_object() && property.contains("type") && property["type"] == "string")
        parser->string_parameters.emplace(function["name"].get<std::string>(), name);
    }
  }
}

// Only for models whose template takes it: elsewhere it would be a promise without effect.
void ReadReasoningEffort(Fields* f, const ModelInfo& model, Json* context) {
  const auto effort = f->String("reasoning_effort");
  if (!effort) return;
  if (!model.reasoning_effort)
    return f->Fail(BadRequest("'reasoning_effort' is not supported by this model.", "reasoning_effort",
                              "unsupported_parameter"));
  if (*effort != "low" && *effort != "medium" && *effort != "high")
    return f->Fail(BadRequest("Invalid value for 'reasoning_effort': expected low, medium or high.",
                              "reasoning_effort", "invalid_value"));
  (*context)["reasoning_effort"] = *effort;
}

}  // namespace

void CheckModel(Fields* f, const ModelInfo& model, bool required) {
  const auto name = f->String("model");
  if (!name) {
    if (required) f->Fail(BadRequest("you must provide a model parameter", "model"));
    return;
  }
  if (*name == model.name) return;
  ApiError error = BadRequest("The model `" + *name + "` does not exist or you do not have access to it.",
                              "model", "model_not_found");
  error.status = 404;
  f->Fail(std::move(error));
}

std::optional<Prompt> ChatPrompt(Fields* f, Json* body, const ModelInfo& model, const ParseLimits& limits,
                                 ParserContext* parser) {
  Json context = Json::object();
  if (const Json* kwargs = f->Get("chat_template_kwargs")) {
    if (!kwargs->is_object())
      f->Wrong("chat_template_kwargs", *kwargs, "an object");
    else
      context = *kwargs;
  }
  context["tools"] = ReadTools(f, &parser->tools);
  ReadReasoningEffort(f, model, &context);
  context["add_generation_prompt"] = f->Bool("add_generation_prompt", true);
  if (const Json* documents = f->Get("documents")) context["documents"] = *documents;
  auto messages = ReadMessages(f, body);
  if (!f->ok()) return std::nullopt;
  if (model.chat_template == nullptr) {
    f->Fail(BadRequest("The model `" + model.name + "` has no chat template; use /v1/completions.", "model"));
    return std::nullopt;
  }
  AddStringParameters(context["tools"], parser);
  context["messages"] = std::move(*messages);
  context["bos_token"] = model.bos_token;
  context["eos_token"] = model.eos_token;
  auto text = model.chat_template->Render(context.dump());
  if (!text.ok()) {
    f->Fail(BadRequest(Message(text.status()), "messages"));
    return std::nullopt;
  }
  parser->starts_thinking = model.format->StartsThinking(*text);
  auto ids = Encode(f, model, limits, *text, f->Bool("add_special_tokens", false), "messages");
  if (!ids) return std::nullopt;
  if (ids->empty()) f->Fail(BadRequest("The rendered prompt is empty.", "messages"));
  return Prompt{std::move(*ids), *std::move(text)};
}

void ReadPrompts(Fields* f, const ModelInfo& model, const ParseLimits& limits, ApiRequest* out) {
  const Json* prompt = f->Get("prompt");
  const bool add_special = f->Bool("add_special_tokens", true);
  if (prompt == nullptr)
    return f->Fail(
        BadRequest("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter"));
  const bool one =
      prompt->is_string() || (prompt->is_array() && !prompt->empty() && prompt->front().is_number());
  const Json list = one ? Json::array({*prompt}) : *prompt;
  if (!list.is_array() || list.empty())
    return f->Fail(
        BadRequest("Invalid 'prompt': expected a string, an array of strings, an array of tokens, or an "
                   "array of token arrays.",
                   "prompt", "invalid_type"));
  if (list.size() > kPromptsMax)
    return f->Fail(BadRequest("'prompt' takes at most " + std::to_string(kPromptsMax) + " prompts.", "prompt",
                              "array_above_max_length"));
  for (const Json& p : list) {
    Prompt item;
    if (p.is_string()) {
      item.text = p.get<std::string>();
      auto ids = Encode(f, model, limits, *item.text, add_special, "prompt");
      if (!ids) return;
      item.ids = std::move(*ids);
    } else if (p.is_array()) {
      auto ids = TokenList(p, limits.vocab);
      if (!ids)
        return f->Fail(BadRequest(
            "Invalid 'prompt': expected token ids from 0 to " + std::to_string(limits.vocab - 1) + ".",
            "prompt", "invalid_value"));
      item.ids = std::move(*ids);
    } else {
      return f->Wrong("prompt", p, "a string, or an array of tokens");
    }
    if (item.ids.empty())
      return f->Fail(
          BadRequest("Invalid 'prompt': a prompt must have at least one token.", "prompt", "invalid_value"));
    out->prompts.push_back(std::move(item));
  }
}

std::string ErrorJson(const ApiError& error) {
  std::string out = R"({"error":{"message":)";
  std::string message = error.message;
  AppendString(&out, TakeUtf8(&message, true));  // it may quote what is not UTF-8
  out += R"(,"type":)";
  AppendString(&out, error.type);
  for (const auto& [key, value] : {std::pair("param", &error.param), std::pair("code", &error.code)}) {
    out += std::string(",\"") + key + "\":";
    if (value->empty())
      out += "null";
    else
      AppendString(&out, *value);
  }
  return out + "}}";
}

std::optional<ApiError> ParseBody(const std::string& body, Json* out) {
  uint32_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kJsonDepthMax)
        return BadRequest("The JSON body is nested more than " + std::to_string(kJsonDepthMax) +
                          " levels deep.");
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  *out = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (out->is_discarded())
    return BadRequest("We could not parse the JSON body of your request. It must be valid JSON in UTF-8.");
  if (!out->is_object()) return BadRequest("The JSON body of your request must be an object.");
  return std::nullopt;
}

std::optional<ApiError> Tokenize(const std::string& body, const ModelInfo& model, const ParseLimits& limits,
                                 std::string* out) {
  Json json;
  if (auto error = ParseBody(body, &json)) return error;
  std::optional<ApiError> error;
  Fields f(json, &error);
  CheckModel(&f, model, false);
  ParseLimits any_length = limits;
  any_length.context_tokens = std::numeric_limits<uint32_t>::max();
  std::optional<std::vector<TokenId>> ids;
  if (f.Get("messages") != nullptr) {
    ParserContext parser;
    if (auto prompt = ChatPrompt(&f, &json, model, any_length, &parser)) ids = std::move(prompt->ids);
  } else if (const auto text = f.String("prompt")) {
    ids = Encode(&f, model, any_length, *text, f.Bool("add_special_tokens", true), "prompt");
  } else {
    f.Fail(BadRequest("Missing required parameter: 'prompt' or 'messages'.", "prompt",
                      "missing_required_parameter"));
  }
  const bool strings = f.Bool("return_token_strs", false);
  if (error) return error;
  *out = "{\"count\":" + std::to_string(ids->size()) +
         ",\"max_model_len\":" + std::to_string(limits.context_tokens) + ",\"tokens\":[";
  for (size_t i = 0; i < ids->size(); ++i) {
    if (i > 0) *out += ",";
    AppendInt(out, (*ids)[i]);
  }
  *out += "],\"token_strs\":";
  if (!strings) *out += "null";
  for (size_t i = 0; strings && i < ids->size(); ++i) {
    *out += i == 0 ? "[" : ",";
    AppendString(out, model.tokenizer->TokenText((*ids)[i]));
  }
  if (strings) *out += ids->empty() ? "[]" : "]";
  *out += "}";
  return std::nullopt;
}

std::optional<ApiError> Detokenize(const std::string& body, const ModelInfo& model, const ParseLimits& limits,
                                   std::string* out) {
  Json json;
  if (auto error = ParseBody(body, &json)) return error;
  std::optional<ApiError> error;
  Fields f(json, &error);
  CheckModel(&f, model, false);
  const Json* tokens = f.Get("tokens");
  const auto ids = tokens != nullptr && tokens->is_array() ? TokenList(*tokens, limits.vocab) : std::nullopt;
  if (!ids)
    f.Fail(BadRequest(
        "Invalid 'tokens': expected an array of token ids below " + std::to_string(limits.vocab) + ".",
        "tokens", "invalid_value"));
  if (error) return error;
  auto text = model.tokenizer->Decode(*ids, false);
  if (!text.ok()) return BadRequest(Message(text.status()), "tokens");
  *out = "{\"prompt\":";
  AppendString(out, *text);
  *out += "}";
  return std::nullopt;
}

std::string ModelJson(const ModelInfo& model, uint32_t context_tokens) {
  std::string out = "{\"id\":";
  AppendString(&out, model.name);
  out += ",\"object\":\"model\",\"created\":";
  AppendInt(&out, model.created);
  out += ",\"owned_by\":\"consilium\",\"root\":";
  AppendString(&out, model.name);
  out += ",\"parent\":null,\"max_model_len\":";
  AppendInt(&out, context_tokens);
  return out + "}";
}

}  // namespace consilium::gateway
