// Kimi K2: a section of calls, each with an id "functions.name:index" and its arguments.
#include <algorithm>

#include "services/gateway/parsers/buffered_parser.h"
#include "services/gateway/parsers/formats.h"

namespace consilium::gateway {
namespace {

constexpr std::string_view kBegin = "<|tool_call_begin|>", kArguments = "<|tool_call_argument_begin|>",
                           kSectionEnd = "<|tool_calls_section_end|>";
constexpr std::string_view kEnds[] = {"<|tool_call_end|>", kSectionEnd};

class Kimi final : public CallParser {
 public:
  Kimi() : CallParser("<|tool_calls_section_begin|>") {}

 private:
  Head ParseHead(std::string_view text, bool last) override {
    Cursor c(text, last);
    Head out;
    out.id = c.White().Word(kBegin).White().Until(kArguments);
    const bool object = c.White().Peek() == '{';
    if (c.needs_more()) return {};
    out.id.erase(out.id.find_last_not_of(kWhite) + 1);
    out.name = out.id.substr(0, out.id.rfind(':'));
    constexpr std::string_view kPrefix = "functions.";
    if (out.name.starts_with(kPrefix)) out.name.erase(0, kPrefix.size());
    out.verdict = object && !out.name.empty() ? Verdict::kYes : Verdict::kNo;
    out.bytes = c.at();
    return out;
  }
  Tail ParseTail(std::string_view text, bool last) override {
    return SectionTail(Cursor(text, last), kEnds[0], kBegin, kSectionEnd);
  }
  std::span<const std::string_view> ends() const override { return kEnds; }
};

}  // namespace

std::unique_ptr<OutputParser> MakeKimi(const ParserContext&) { return std::make_unique<Kimi>(); }

}  // namespace consilium::gateway
