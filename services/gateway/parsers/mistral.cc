// Mistral: [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...] up to v7; then
// [TOOL_CALLS]name[CALL_ID]id[ARGS]{...} and [TOOL_CALLS]name{...}.
#include "services/gateway/parsers/formats.h"
#include "services/gateway/parsers/json_calls.h"

namespace consilium::gateway {
namespace {

class Mistral final : public JsonListParser {
 public:
  Mistral() : JsonListParser("[TOOL_CALLS]") {}

 private:
  Head ParseHead(std::string_view text, bool last) override {
    Cursor c(text, last);
    const char first = c.White().Peek();
    if (c.needs_more()) return {};
    named_ = !in_list_ && first != '[';
    if (!named_) return JsonListParser::ParseHead(text, last);
    Head out;
    out.name = c.Name();
    if (c.Try("[CALL_ID]"))
      out.id = c.Until("[ARGS]");
    else
      c.Try("[ARGS]");
    const bool object = c.White().Peek() == '{';
    if (c.needs_more()) return {};
    out.verdict = object ? Verdict::kYes : Verdict::kNo;
    out.bytes = c.at();
    return out;
  }
  Tail ParseTail(std::string_view text, bool last) override {
    return named_ ? Tail{Next::kText, 0} : JsonListParser::ParseTail(text, last);
  }

  bool named_ = false;
};

}  // namespace

std::unique_ptr<OutputParser> MakeMistral(const ParserContext&) { return std::make_unique<Mistral>(); }

// Granite 3: <|tool_call|>[{"name": ..., "arguments": {...}}, ...]
std::unique_ptr<OutputParser> MakeGranite(const ParserContext&) {
  return std::make_unique<JsonListParser>("<|tool_call|>");
}

}  // namespace consilium::gateway
