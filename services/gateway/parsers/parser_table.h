// The formats by name, and which of them a model writes.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/text/text.h"
#include "services/gateway/parsers/output_parser.h"

namespace consilium::gateway {

struct ToolFormat {
  std::string_view name;
  std::unique_ptr<OutputParser> (*make)(const ParserContext&);
  std::vector<std::string_view> markers;  // which may be special tokens: they must reach the parser
};

// What a model writes. Immutable.
struct OutputFormat {
  const ToolFormat* tools = nullptr;         // of the table; null: calls are not looked for
  std::string_view think_open, think_close;  // empty: no reasoning (harmony has its own)
  bool harmony = false;
  // Special tokens that the parsers need: with tools in the request, and without.
  std::shared_ptr<const std::vector<TokenId>> kept_with_tools, kept;

  // What reads an answer's text; null: all of it is content.
  std::unique_ptr<OutputParser> Make(const ParserContext& context) const;
  // The prompt ends within the reasoning, so that the answer begins there.
  bool StartsThinking(std::string_view prompt) const;
};

// "auto", "none" and the table's names; "auto", "think", "harmony", "none".
std::vector<std::string> ToolParserNames();
std::vector<std::string> ReasoningParserNames();
// INVALID_ARGUMENT: unknown names, or harmony for one side with another parser for the other side's calls.
absl::StatusOr<OutputFormat> ChooseFormat(std::string_view tool_parser, std::string_view reasoning_parser,
                                          std::string_view chat_template, std::string_view model_type,
                                          const Tokenizer& tokenizer);

}  // namespace consilium::gateway
