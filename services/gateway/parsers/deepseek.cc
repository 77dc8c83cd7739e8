// DeepSeek: a section of calls, each "type<sep>name" with the arguments in a ```json block (V3, R1), or
// "name<sep>arguments" (V3.1).
#include "services/gateway/parsers/buffered_parser.h"
#include "services/gateway/parsers/formats.h"

namespace consilium::gateway {
namespace {

constexpr std::string_view kBegin = "<｜tool▁call▁begin｜>", kSeparator = "<｜tool▁sep｜>",
                           kSectionEnd = "<｜tool▁calls▁end｜>", kFence = "```";
constexpr std::string_view kEnds[] = {"<｜tool▁call▁end｜>", kSectionEnd};

std::string Trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(kWhite);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(kWhite) + 1 - begin);
}

class DeepSeek final : public CallParser {
 public:
  DeepSeek() : CallParser("<｜tool▁calls▁begin｜>") {}

 private:
  Head ParseHead(std::string_view text, bool last) override {
    Cursor c(text, last);
    Head out;
    out.name = Trimmed(c.White().Word(kBegin).Until(kSeparator));
    if (c.White().Peek() != '{') {
      out.name = Trimmed(c.Until("\n"));
      c.White().Word("```json").White();
    }
    const bool object = c.Peek() == '{' && !out.name.empty();
    if (c.needs_more()) return {};
    out.verdict = object ? Verdict::kYes : Verdict::kNo;
    out.bytes = c.at();
    return out;
  }
  Tail ParseTail(std::string_view text, bool last) override {
    Cursor c(text, last);
    c.White();
    c.Try(kFence);
    return SectionTail(c, kEnds[0], kBegin, kSectionEnd);
  }
  std::span<const std::string_view> ends() const override { return kEnds; }
};

}  // namespace

std::unique_ptr<OutputParser> MakeDeepSeek(const ParserContext&) { return std::make_unique<DeepSeek>(); }

}  // namespace consilium::gateway
