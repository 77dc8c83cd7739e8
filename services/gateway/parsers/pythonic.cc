// Llama 4: the answer is a list of Python calls, [f(a=1, b="x"), g()], within <|python_start|> and
// <|python_end|> or without. A call is taken when it is whole: its values change their spelling.
#include <cstdlib>
#include <utility>

#include "services/gateway/parsers/buffered_parser.h"
#include "services/gateway/parsers/formats.h"

namespace consilium::gateway {
namespace {

constexpr std::string_view kMarkers[] = {"<|python_start|>", "<|python_end|>"};

// A Python literal to JSON.
class Literal {
 public:
  explicit Literal(Cursor* c) : c_(*c) {}
  std::string Read(size_t depth = 0) {
    const char first = c_.White().Peek();
    if (depth > kCallDepthMax) return c_.Fail(), "";
    if (first == '"' || first == '\'') return String(first);
    if (first == '[') return List("[", "]", depth);
    if (first == '(') return List("(", ")", depth);
    if (first == '{') return Dict(depth);
    for (const auto& [python, json] :
         {std::pair("True", "true"), std::pair("False", "false"), std::pair("None", "null"),
          std::pair("true", "true"), std::pair("false", "false"), std::pair("null", "null")}) {
      if (c_.rest().starts_with(python)) return c_.Word(python), json;
    }
    return Number();
  }

 private:
  std::string Number() {
    std::string text;
    while (c_.ok() && !c_.rest().empty() &&
           std::string_view("+-0123456789.eE").find(c_.rest()[0]) != std::string_view::npos) {
      text += c_.rest()[0];
      c_.Word(c_.rest().substr(0, 1));
    }
    const size_t digits = text.starts_with('-') ? 1 : 0;
    char* end = nullptr;
    std::strtod(text.c_str(), &end);
    const bool plain = digits < text.size() && text[digits] >= '0' && text[digits] <= '9' &&
                       text.back() != '.' &&
                       (text[digits] != '0' || digits + 1 == text.size() || text[digits + 1] == '.');
    if (!plain || *end != '\0') c_.Fail();
    return text;
  }
  std::string String(char quote) {
    const std::string mark(1, quote);
    c_.Word(mark);
    std::string value;
    while (c_.ok() && !c_.Try(mark)) {
      const std::string_view rest = c_.rest();
      if (rest.empty()) return c_.Fail(), "";
      size_t n = 1;
      if (rest[0] == '\\' && rest.size() > 1) {
        n = 2;
        const size_t known = std::string_view("nrt\\'\"").find(rest[1]);
        if (known == std::string_view::npos)
          value += rest.substr(0, 2);
        else
          value += "\n\r\t\\'\""[known];
      } else {
        value += rest[0];
      }
      c_.Word(rest.substr(0, n));
    }
    return JsonQuoted(value);
  }
  std::string List(std::string_view open, std::string_view close, size_t depth) {
    std::string out = "[";
    c_.Word(open).White();
    while (c_.ok() && !c_.Try(close)) {
      if (out.size() > 1) out += ", ";
      out += Read(depth + 1);
      if (c_.White().Try(","))
        c_.White();
      else if (!c_.rest().starts_with(close))
        c_.Fail();
    }
    return out + "]";
  }
  std::string Dict(size_t depth) {
    std::string out = "{";
    c_.Word("{").White();
    while (c_.ok() && !c_.Try("}")) {
      if (out.size() > 1) out += ", ";
      const char first = c_.Peek();
      if (first != '"' && first != '\'') return c_.Fail(), "";
      out += Read(depth + 1);
      c_.White().Word(":");
      out += ": " + Read(depth + 1);
      if (c_.White().Try(","))
        c_.White();
      else if (!c_.rest().starts_with("}"))
        c_.Fail();
    }
    return out + "}";
  }

  Cursor& c_;
};

// Bytes up to and with the bracket that closes the call which `text` is; npos: not there.
size_t CallEnd(std::string_view text) {
  size_t depth = 0;
  char quote = '\0';
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != '\0') {
      if (c == '\\')
        ++i;
      else if (c == quote)
        quote = '\0';
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '(' || c == '[' || c == '{') {
      ++depth;
    } else if ((c == ')' || c == ']' || c == '}') && depth > 0 && --depth == 0) {
      return i + 1;
    }
  }
  return std::string_view::npos;
}

class Pythonic final : public BufferedParser {
 public:
  bool in_call() const override { return state_ == State::kCall || state_ == State::kBetween; }

 private:
  enum class State : uint8_t { kStart, kCall, kBetween, kText };

  bool Step(bool last, MessageDelta* out) override {
    switch (state_) {
      case State::kStart:
        return StepStart(last, out);
      case State::kCall:
        return StepCall(last, out);
      case State::kBetween:
        return StepBetween(last, out);
      case State::kText:
        break;
    }
    if (buffer_.empty()) return false;
    const auto marker = TakeContent(kMarkers, last, out);
    if (marker == 0u) {
      state_ = State::kStart;
      opened_ = space_ + std::string(kMarkers[0]);
    }
    return marker.has_value();
  }
  // A list of calls is one only at the start of the answer or behind its marker.
  bool StepStart(bool last, MessageDelta* out) {
    Cursor c(buffer_, last);
    c.White();
    const bool marked = c.Try(kMarkers[0]);
    if (!marked && c.needs_more()) return false;
    const size_t marker = marked ? c.at() : 0;
    c.White().Word("[").White();
    const size_t call = c.at();
    const std::string name = c.Name();
    c.White().Word("(");
    if (c.needs_more() && buffer_.size() <= kUndecidedBytesMax) return false;
    const size_t head = c.ok() ? call : marker;
    held_ = std::exchange(opened_, "") + buffer_.substr(0, head);
    Consume(head);
    state_ = c.ok() ? State::kCall : State::kText;
    if (!c.ok()) Content(held_, out);
    return true;
  }
  bool StepCall(bool last, MessageDelta* out) {
    const std::string_view text = std::string_view(buffer_).substr(0, kUndecidedBytesMax);
    const size_t end = CallEnd(text);
    if (end == std::string_view::npos && !last && buffer_.size() <= kUndecidedBytesMax) return false;
    std::optional<CallDelta> call;
    if (end != std::string_view::npos) call = Parse(text.substr(0, end));
    if (!call) {
      Content(held_, out);
      state_ = State::kText;
      return true;
    }
    out->AddCall(std::move(*call));
    any_call_ = after_call_ = true;
    Consume(end);
    state_ = State::kBetween;
    return true;
  }
  bool StepBetween(bool last, MessageDelta*) {
    Cursor c(buffer_, last);
    c.White();
    if (c.Try(",")) {
      c.White();
      if (c.rest().empty() && !last) return false;  // more white space may come
      held_ = buffer_.substr(0, c.at());
      Consume(c.at());
      state_ = State::kCall;
      return true;
    }
    const bool closed = c.Try("]");
    const size_t at = c.at();
    if (closed) {
      Consume(at);
      state_ = State::kText;
      return true;
    }
    if (c.needs_more()) return false;
    state_ = State::kText;
    return true;
  }
  static std::optional<CallDelta> Parse(std::string_view text) {
    Cursor c(text, true);
    CallDelta out;
    out.name = c.Name();
    c.White().Word("(").White();
    std::string json = "{";
    while (c.ok() && !c.Try(")")) {
      const std::string key = c.Name();
      c.White().Word("=");
      if (json.size() > 1) json += ", ";
      json += JsonQuoted(key) + ": " + Literal(&c).Read();
      if (c.White().Try(","))
        c.White();
      else if (!c.rest().starts_with(")"))
        c.Fail();
    }
    if (!c.ok() || c.at() != text.size()) return std::nullopt;
    out.arguments = json + "}";
    return out;
  }

  State state_ = State::kStart;
  std::string opened_;  // a marker that was taken from the text
  std::string held_;    // before the call: given back if it is none
};

}  // namespace

std::unique_ptr<OutputParser> MakePythonic(const ParserContext&) { return std::make_unique<Pythonic>(); }

}  // namespace consilium::gateway
