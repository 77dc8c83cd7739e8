// Hermes, Qwen, Ernie, Granite 4: <tool_call>{"name": ..., "arguments": {...}}</tool_call>
#include <algorithm>

#include "services/gateway/parsers/formats.h"
#include "services/gateway/parsers/json_calls.h"

namespace consilium::gateway {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose[] = {"</tool_call>"};

class Hermes final : public JsonCallParser {
 public:
  Hermes() : JsonCallParser(kOpen) {}

 private:
  Head ParseHead(std::string_view text, bool last) override {
    const size_t close = text.find(kClose[0]);
    return ReadObject(text.substr(0, close), 0, last || close != std::string_view::npos);
  }
  Tail ParseTail(std::string_view text, bool last) override {
    const size_t close = text.find(kClose[0]);
    const bool closed = close != std::string_view::npos;
    const auto rest = ObjectRest(text.substr(0, close), last || closed);
    if (!rest) return {};
    Cursor c(text.substr(*rest), last);
    c.White();
    const size_t white = c.at();
    if (c.Try(kClose[0])) return {Next::kText, *rest + c.at()};
    if (c.needs_more()) return {};
    return {Next::kText, *rest + white};
  }
  std::span<const std::string_view> ends() const override { return kClose; }
};

}  // namespace

std::unique_ptr<OutputParser> MakeHermes(const ParserContext&) { return std::make_unique<Hermes>(); }

}  // namespace consilium::gateway
