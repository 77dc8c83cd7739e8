#include "services/gateway/parsers/parser_table.h"

#include <algorithm>
#include <array>

#include "common/base/status.h"
#include "services/gateway/parsers/formats.h"

namespace consilium::gateway {
namespace {

const std::vector<ToolFormat>& Table() {
  static const std::vector<ToolFormat> table = {
      {"hermes", MakeHermes, {"<tool_call>", "</tool_call>"}},
      {"mistral", MakeMistral, {"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"}},
      {"deepseek",
       MakeDeepSeek,
       {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>"}},
      {"kimi",
       MakeKimi,
       {"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>", "<|tool_call_end|>"}},
      {"glm",
       MakeGlm,
       {"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}},
      {"llama4_pythonic", MakePythonic, {"<|python_start|>", "<|python_end|>"}},
      {"granite", MakeGranite, {"<|tool_call|>"}},
      {"minimax", MakeMiniMax, {"<minimax:tool_call>", "</minimax:tool_call>"}},
      {"harmony",
       MakeHarmony,
       {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"}},
  };
  return table;
}

const ToolFormat* Named(std::string_view name) {
  for (const ToolFormat& format : Table()) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

// By what the template shows of calls, then by the family. The first that fits.
struct Rule {
  std::string_view text, name;
};
constexpr std::array kByTemplate = {Rule{"<|channel|>", "harmony"},
                                    Rule{"<｜tool▁calls▁begin｜>", "deepseek"},
                                    Rule{"<|tool_calls_section_begin|>", "kimi"},
                                    Rule{"<arg_key>", "glm"},
                                    Rule{"<minimax:tool_call>", "minimax"},
                                    Rule{"[TOOL_CALLS]", "mistral"},
                                    Rule{"<|python_start|>", "llama4_pythonic"},
                                    Rule{"<|tool_call|>", "granite"},
                                    Rule{"<tool_call>", "hermes"}};
constexpr std::array kByFamily = {Rule{"gpt_oss", "harmony"}, Rule{"deepseek", "deepseek"},
                                  Rule{"kimi", "kimi"},       Rule{"glm4", "glm"},
                                  Rule{"minimax", "minimax"}, Rule{"mistral", "mistral"},
                                  Rule{"mixtral", "mistral"}, Rule{"llama4", "llama4_pythonic"}};

const ToolFormat* AutoTools(std::string_view chat_template, std::string_view model_type) {
  for (const Rule& rule : kByTemplate) {
    if (chat_template.find(rule.text) != std::string_view::npos) return Named(rule.name);
  }
  for (const Rule& rule : kByFamily) {
    if (model_type.starts_with(rule.text)) return Named(rule.name);
  }
  return Named("hermes");  // what most models are trained to write
}

std::shared_ptr<const std::vector<TokenId>> Special(const Tokenizer& tokenizer,
                                                    const std::vector<std::string_view>& texts) {
  auto out = std::make_shared<std::vector<TokenId>>();  // shared by all streams
  for (size_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto token = static_cast<TokenId>(id);
    if (tokenizer.IsSpecial(token) &&
        std::find(texts.begin(), texts.end(), tokenizer.TokenBytes(token)) != texts.end())
      out->push_back(token);
  }
  return out;
}

}  // namespace

std::vector<std::string> ToolParserNames() {
  std::vector<std::string> out = {"auto", "none"};
  for (const ToolFormat& format : Table()) out.emplace_back(format.name);
  return out;
}
std::vector<std::string> ReasoningParserNames() { return {"auto", "none", "think", "harmony"}; }

absl::StatusOr<OutputFormat> ChooseFormat(std::string_view tool_parser, std::string_view reasoning_parser,
                                          std::string_view chat_template, std::string_view model_type,
                                          const Tokenizer& tokenizer) {
  const auto known = [](const std::vector<std::string>& names, std::string_view name, std::string_view flag) {
    if (std::find(names.begin(), names.end(), name) != names.end()) return absl::OkStatus();
    std::string list;
    for (const std::string& n : names) list += (list.empty() ? "" : ", ") + n;
    return InvalidArgument("--" + std::string(flag) + ": expected one of " + list + ", got " +
                           std::string(name));
  };
  RETURN_IF_ERROR(known(ToolParserNames(), tool_parser, "tool-parser"));
  RETURN_IF_ERROR(known(ReasoningParserNames(), reasoning_parser, "reasoning-parser"));
  OutputFormat out;
  if (tool_parser == "auto")
    out.tools = reasoning_parser == "harmony" ? Named("harmony") : AutoTools(chat_template, model_type);
  else
    out.tools = Named(tool_parser);
  const auto has = [&](std::string_view text) { return chat_template.find(text) != std::string_view::npos; };
  const bool harmony_tools = out.tools != nullptr && out.tools->name == "harmony";
  out.harmony = harmony_tools || reasoning_parser == "harmony";
  if (out.harmony &&
      ((tool_parser != "auto" && !harmony_tools && tool_parser != "none") || (reasoning_parser == "think")))
    return InvalidArgument("harmony carries calls and reasoning together: --tool-parser " +
                           std::string(tool_parser) + " does not go with --reasoning-parser " +
                           std::string(reasoning_parser));
  if (!out.harmony &&
      (reasoning_parser == "think" ||
       (reasoning_parser == "auto" && (has("<think>") || has("</think>") || has("[THINK]"))))) {
    const bool square = has("[THINK]");
    out.think_open = square ? "[THINK]" : "<think>";
    out.think_close = square ? "[/THINK]" : "</think>";
  }
  std::vector<std::string_view> texts;
  if (!out.think_open.empty()) texts = {out.think_open, out.think_close};
  if (out.harmony) texts = Named("harmony")->markers;
  out.kept = Special(tokenizer, texts);
  if (out.tools != nullptr) texts.insert(texts.end(), out.tools->markers.begin(), out.tools->markers.end());
  out.kept_with_tools = Special(tokenizer, texts);
  return out;
}

std::unique_ptr<OutputParser> OutputFormat::Make(const ParserContext& context) const {
  if (harmony) {
    ParserContext inner = context;
    inner.tools = context.tools && tools != nullptr;
    return MakeHarmony(inner);
  }
  const bool calls = context.tools && tools != nullptr;
  if (!calls && think_open.empty()) return nullptr;
  auto inner = calls ? tools->make(context) : MakePlain(context);
  return think_open.empty() ? std::move(inner)
                            : MakeThink(think_open, think_close, context, std::move(inner));
}

bool OutputFormat::StartsThinking(std::string_view prompt) const {
  if (think_open.empty()) return false;
  const size_t last = prompt.find_last_not_of(" \t\r\n");
  return last != std::string_view::npos && prompt.substr(0, last + 1).ends_with(think_open);
}

}  // namespace consilium::gateway
