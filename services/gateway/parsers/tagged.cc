// Formats with a tag for each parameter, whose value is plain text for strings and JSON for all else.
// GLM 4.5: <tool_call>name <arg_key>k</arg_key><arg_value>v</arg_value>...</tool_call>
// MiniMax M2: <minimax:tool_call><invoke name="name"><parameter name="k">v</parameter>...</invoke>...
#include <nlohmann/json.hpp>

#include "services/gateway/parsers/buffered_parser.h"
#include "services/gateway/parsers/formats.h"

namespace consilium::gateway {
namespace {

struct Tags {
  std::string_view key_open, key_close, value_open, value_close, end;
};

class TaggedParser : public CallParser {
 protected:
  TaggedParser(std::string_view open, const Tags& tags, const ParserContext& context)
      : CallParser(open), tags_(tags), strings_(context.string_parameters) {}

  Arguments ParseArguments(std::string_view text, bool last) final {
    Cursor c(text, last);
    Arguments out;
    c.White();
    if (c.Try(tags_.key_open)) {
      const std::string key = c.Until(tags_.key_close);
      if (!tags_.value_open.empty()) c.White().Word(tags_.value_open);
      const std::string value = c.Until(tags_.value_close);
      if (c.ok()) {
        out.json = (count_++ == 0 ? "{" : ", ") + JsonQuoted(key) + ": " + Value(key, value);
        out.bytes = c.at();
        return out;
      }
    }
    if (c.needs_more()) return out;
    out.json = count_ == 0 ? "{}" : "}";  // the end, or what is no parameter
    out.done = true;
    return out;
  }
  void BeginArguments() final { count_ = 0; }
  std::span<const std::string_view> ends() const final { return {&tags_.end, 1}; }

  std::string name_;

 private:
  std::string Value(const std::string& key, const std::string& text) const {
    if (!strings_.contains({name_, key}) && !TooDeep(text)) {
      const auto value = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (!value.is_discarded()) return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
    return JsonQuoted(text);
  }

  const Tags tags_;
  const std::set<std::pair<std::string, std::string>> strings_;
  size_t count_ = 0;
};

class Glm final : public TaggedParser {
 public:
  explicit Glm(const ParserContext& context) : TaggedParser("<tool_call>", kTags, context) {}

 private:
  static constexpr Tags kTags{"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"};

  Head ParseHead(std::string_view text, bool last) override {
    Cursor c(text, last);
    Head out;
    out.name = c.White().Name();
    c.White();
    out.bytes = c.at();
    const bool known = c.Try(kTags.key_open) || c.Try(kTags.end);
    if (!known && c.needs_more()) return {};
    out.verdict = known ? Verdict::kYes : Verdict::kNo;
    name_ = out.name;
    return out;
  }
  Tail ParseTail(std::string_view text, bool last) override {
    Cursor c(text, last);
    c.White();
    if (c.Try(kTags.end)) return {Next::kText, c.at()};
    if (c.needs_more()) return {};
    return {Next::kText, 0};
  }
};

class MiniMax final : public TaggedParser {
 public:
  explicit MiniMax(const ParserContext& context) : TaggedParser("<minimax:tool_call>", kTags, context) {}

 private:
  static constexpr Tags kTags{"<parameter name=\"", "\">", "", "</parameter>", "</invoke>"};
  static constexpr std::string_view kInvoke = "<invoke name=\"", kClose = "</minimax:tool_call>";

  Head ParseHead(std::string_view text, bool last) override {
    Cursor c(text, last);
    Head out;
    out.name = c.White().Word(kInvoke).Until("\">");
    if (c.needs_more()) return {};
    out.verdict = c.ok() && !out.name.empty() ? Verdict::kYes : Verdict::kNo;
    out.bytes = c.at();
    name_ = out.name;
    return out;
  }
  Tail ParseTail(std::string_view text, bool last) override {
    Cursor c(text, last);
    c.White();
    const bool closed = c.Try(kTags.end);
    c.White();
    const size_t at = c.at();
    if (closed && c.Try(kInvoke)) return {Next::kCall, at};
    if (c.Try(kClose)) return {Next::kText, c.at()};
    if (c.needs_more()) return {};
    return {Next::kText, at};
  }
};

}  // namespace

std::unique_ptr<OutputParser> MakeGlm(const ParserContext& context) { return std::make_unique<Glm>(context); }
std::unique_ptr<OutputParser> MakeMiniMax(const ParserContext& context) {
  return std::make_unique<MiniMax>(context);
}

}  // namespace consilium::gateway
