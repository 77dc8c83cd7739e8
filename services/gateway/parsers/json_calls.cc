#include "services/gateway/parsers/json_calls.h"

namespace consilium::gateway {

CallParser::Head JsonCallParser::ReadObject(std::string_view text, size_t at, bool last) {
  Head out;
  Cursor c(text.substr(at), last);
  c.White().Word("{");
  if (c.refused()) return {Verdict::kNo, 0, "", "", {}};
  if (c.needs_more()) return out;
  c.White();
  if (c.Try("\"name\"")) {
    out.name = c.White().Word(":").White().JsonString().value_or("");
    c.White().Word(",").White();
    if (c.Try("\"arguments\"") || c.Try("\"parameters\"")) {
      if (c.White().Word(":").White().Peek() == '{') {
        whole_ = false;
        out.verdict = Verdict::kYes;
        out.bytes = at + c.at();
        return out;
      }
    }
  }
  if (c.needs_more()) return {};
  const size_t begin = text.find('{', at);
  JsonSpan span;
  const size_t size = span.Scan(text.substr(begin));
  if (!span.done() && !last) return {};
  auto call = ParseWholeCall(text.substr(begin, size));
  if (!call) return {Verdict::kNo, 0, "", "", {}};
  whole_ = true;
  return {Verdict::kYes, begin + size, std::move(call->name), "", std::move(call->arguments)};
}

std::optional<size_t> JsonCallParser::ObjectRest(std::string_view text, bool last) const {
  if (whole_) return 0;
  const size_t at = text.find_first_not_of(kWhite);
  if (at == std::string_view::npos) return last ? std::optional(text.size()) : std::nullopt;
  if (text[at] == '}') return at + 1;
  if (text[at] != ',') return 0;  // the object is broken: what follows is content
  JsonSpan span;                  // other keys are of no use
  const std::string object = "{" + std::string(text);
  const size_t size = span.Scan(object) - 1;
  if (!span.done() && !last) return std::nullopt;
  return size;
}

CallParser::Head JsonListParser::ParseHead(std::string_view text, bool last) {
  Cursor c(text, last);
  c.White();
  if (!in_list_) c.Word("[");
  if (c.needs_more()) return {};
  if (c.refused()) return {Verdict::kNo, 0, "", "", {}};
  return ReadObject(text, c.at(), last);
}

CallParser::Tail JsonListParser::ParseTail(std::string_view text, bool last) {
  const auto rest = ObjectRest(text, last);
  if (!rest) return {};
  Cursor c(text.substr(*rest), last);
  c.White();
  if (c.Try(",")) {
    in_list_ = true;
    return {Next::kCall, *rest + c.at()};
  }
  if (c.Try("]")) return {Next::kText, *rest + c.at()};
  if (c.needs_more()) return {};
  return {Next::kText, *rest};
}

}  // namespace consilium::gateway
