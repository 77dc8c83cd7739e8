#include "services/gateway/parsers/buffered_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "services/gateway/json_out.h"
#include "services/gateway/stop_scanner.h"

namespace consilium::gateway {

void BufferedParser::Feed(std::string_view text, MessageDelta* out) {
  buffer_ += text;
  while (Step(false, out)) {
  }
}

void BufferedParser::Flush(MessageDelta* out) {
  while (Step(true, out)) {
  }
  Ended(out);
}

void BufferedParser::Content(std::string_view text, MessageDelta* out) {
  if (after_call_) {
    const size_t begin = text.find_first_not_of(kWhite);
    if (begin == std::string_view::npos) return;
    text.remove_prefix(begin);
    after_call_ = false;
  }
  out->content.append(text);
}

std::optional<size_t> BufferedParser::TakeContent(std::span<const std::string_view> markers, bool last,
                                                  MessageDelta* out) {
  size_t open = std::string::npos, which = 0;
  for (size_t i = 0; i < markers.size(); ++i) {
    const size_t at = buffer_.find(markers[i]);
    if (at < open) open = at, which = i;
  }
  const bool found = open != std::string::npos;
  const size_t known = found ? open : buffer_.size() - (last ? 0 : PartialOfAny(buffer_, markers));
  if (last && !found) {
    // White space at the end of an answer that is made of calls is no content.
    if (!any_call_ || buffer_.find_first_not_of(kWhite) != std::string::npos) Content(buffer_, out);
    buffer_.clear();
    return std::nullopt;
  }
  const size_t solid = std::string_view(buffer_).substr(0, known).find_last_not_of(kWhite);
  const size_t end = solid == std::string::npos ? 0 : solid + 1;
  Content(std::string_view(buffer_).substr(0, end), out);
  if (!found) {
    Consume(end);
    return std::nullopt;
  }
  space_ = buffer_.substr(end, open - end);
  Consume(open + markers[which].size());
  return which;
}

size_t JsonSpan::Scan(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string_) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == '"')
        in_string_ = false;
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if ((c == '}' || c == ']') && --depth_ == 0) {
      done_ = true;
      return i + 1;
    }
  }
  return text.size();
}

CallParser::Arguments CallParser::ParseArguments(std::string_view text, bool last) {
  // A marker ends them even within a string: it is a token of its own, which a model does not quote.
  size_t stop = std::string_view::npos;
  for (const std::string_view end : ends()) stop = std::min(stop, text.find(end));
  const bool stopped = stop != std::string_view::npos;
  std::string_view sure = text.substr(0, stopped ? stop : text.size());
  if (!stopped && !last) sure.remove_suffix(PartialOfAny(sure, ends()));
  Arguments out;
  out.bytes = span_.Scan(sure);
  out.done = span_.done() || stopped || last;
  out.json = sure.substr(0, out.bytes);
  return out;
}

bool CallParser::StepHead(bool last, MessageDelta* out) {
  Head head = ParseHead(buffer_, last);
  if (head.verdict == Verdict::kMore && !last && buffer_.size() <= kUndecidedBytesMax) return false;
  if (head.verdict == Verdict::kYes && head.bytes <= kUndecidedBytesMax) {
    Consume(head.bytes);
    any_call_ = after_call_ = true;
    const bool whole = head.arguments.has_value();
    out->AddCall({true, std::move(head.id), std::move(head.name), head.arguments.value_or("")});
    state_ = whole ? State::kTail : State::kArguments;
    if (!whole) BeginArguments();
    return true;
  }
  // No call: the text stays as it was.
  if (first_) {
    Content(space_, out);
    Content(open_, out);
  }
  state_ = State::kText;
  return true;
}

bool CallParser::StepArguments(bool last, MessageDelta* out) {
  Arguments arguments = ParseArguments(buffer_, last);
  Consume(arguments.bytes);
  if (!arguments.json.empty()) out->AddCall({false, "", "", std::move(arguments.json)});
  if (!arguments.done) return arguments.bytes > 0 && !buffer_.empty();
  state_ = State::kTail;
  return true;
}

CallParser::Tail CallParser::SectionTail(Cursor c, std::string_view end, std::string_view begin,
                                         std::string_view section_end) {
  c.White();
  const bool closed = c.Try(end);
  c.White();
  const size_t at = c.at();
  if (closed && c.Try(begin)) return {Next::kCall, at};
  if (c.Try(section_end)) return {Next::kText, c.at()};
  if (c.needs_more()) return {};
  return {Next::kText, at};
}

bool CallParser::Step(bool last, MessageDelta* out) {
  switch (state_) {
    case State::kText:
      if (buffer_.empty() || !TakeContent(std::span(&open_, 1), last, out)) return false;
      state_ = State::kHead;
      first_ = true;
      Opened();
      return true;
    case State::kHead:
      return StepHead(last, out);
    case State::kArguments:
      return StepArguments(last, out);
    case State::kTail:
      break;
  }
  Tail tail = ParseTail(buffer_, last);
  if (tail.next == Next::kMore && !last && buffer_.size() <= kUndecidedBytesMax) return false;
  if (tail.next == Next::kMore || tail.bytes > kUndecidedBytesMax) tail = {Next::kText, 0};
  Consume(tail.bytes);
  state_ = tail.next == Next::kCall ? State::kHead : State::kText;
  first_ = false;
  return true;
}

Cursor& Cursor::White() {
  if (!ok()) return *this;
  at_ = std::min(text_.find_first_not_of(kWhite, at_), text_.size());
  return *this;
}

Cursor& Cursor::Word(std::string_view word) {
  if (!ok()) return *this;
  const std::string_view here = rest().substr(0, word.size());
  if (here == word)
    at_ += word.size();
  else if (word.starts_with(here))
    short_ = true;
  else
    failed_ = true;
  return *this;
}

bool Cursor::Try(std::string_view word) {
  if (!ok()) return false;
  const std::string_view here = rest().substr(0, word.size());
  if (here == word) {
    at_ += word.size();
    return true;
  }
  // What may become the word decides nothing yet; at the end of the text it is not the word.
  if (word.starts_with(here) && !last_) short_ = true;
  return false;
}

std::string Cursor::Until(std::string_view word) {
  if (!ok()) return "";
  const size_t end = text_.find(word, at_);
  if (end == std::string_view::npos) {
    short_ = true;
    return "";
  }
  std::string out(text_.substr(at_, end - at_));
  at_ = end + word.size();
  return out;
}

std::string Cursor::Name() {
  if (!ok()) return "";
  size_t end = at_;
  const auto letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  while (end < text_.size() && letter(text_[end])) ++end;
  if (end == text_.size() && !last_) short_ = true;
  if (end == at_ && !short_) failed_ = true;
  if (!ok()) return "";
  std::string out(text_.substr(at_, end - at_));
  at_ = end;
  return out;
}

char Cursor::Peek() {
  if (!ok()) return '\0';
  if (at_ < text_.size()) return text_[at_];
  short_ = true;
  return '\0';
}

std::optional<std::string> Cursor::JsonString() {
  if (Peek() != '"') {
    if (ok()) failed_ = true;
    return std::nullopt;
  }
  size_t end = at_ + 1;
  while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
  if (end >= text_.size()) {
    short_ = true;
    return std::nullopt;
  }
  const auto value =
      nlohmann::json::parse(text_.substr(at_, end + 1 - at_), nullptr, /*allow_exceptions=*/false);
  if (!value.is_string()) {
    failed_ = true;
    return std::nullopt;
  }
  at_ = end + 1;
  return value.get<std::string>();
}

size_t PartialOfAny(std::string_view text, std::span<const std::string_view> words) {
  size_t out = 0;
  for (const std::string_view word : words) out = std::max(out, PartialMatch(text, word));
  return out;
}

std::string JsonQuoted(std::string_view utf8) {
  std::string out;
  AppendString(&out, utf8);
  return out;
}

bool TooDeep(std::string_view json) {
  size_t depth = 0;
  for (const char c : json) {
    if ((c == '[' || c == '{') && ++depth > kCallDepthMax) return true;
    if ((c == ']' || c == '}') && depth > 0) --depth;
  }
  return false;
}

std::optional<WholeCall> ParseWholeCall(std::string_view json) {
  using nlohmann::ordered_json;
  if (TooDeep(json)) return std::nullopt;
  const ordered_json call = ordered_json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return std::nullopt;
  WholeCall out{call["name"].get<std::string>(), "{}"};
  for (const char* key : {"arguments", "parameters"}) {
    const auto it = call.find(key);
    if (it == call.end() || it->is_null()) continue;
    if (!it->is_object() && !it->is_string()) return std::nullopt;
    out.arguments = it->is_string() ? it->get<std::string>()
                                    : it->dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    break;
  }
  return out;
}

}  // namespace consilium::gateway
