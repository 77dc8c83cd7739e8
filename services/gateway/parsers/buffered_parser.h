// Bases of the parsers. A parser is a machine over a buffer that takes each decision as soon as the text that
// decides it is there, and never on how much more has come: so the pieces do not matter.
#pragma once
#include <cstdint>
#include <optional>
#include <span>

#include "services/gateway/parsers/output_parser.h"

namespace consilium::gateway {

inline constexpr std::string_view kWhite = " \t\r\n";
inline constexpr size_t kUndecidedBytesMax = 65536;  // beyond, text that has not become a call is none
inline constexpr size_t kCallDepthMax = 100;         // of JSON that is parsed: its library recurses

class BufferedParser : public OutputParser {
 public:
  void Feed(std::string_view text, MessageDelta* out) final;
  void Flush(MessageDelta* out) final;

 protected:
  // Takes one decision and what belongs to it from buffer_; false: more text is needed. `last`: no more
  // comes, and true is to be answered until buffer_ is empty.
  virtual bool Step(bool last, MessageDelta* out) = 0;
  virtual void Ended(MessageDelta*) {}

  // Content up to the first of `markers` goes out, but the white space before it; its index, with the buffer
  // behind it and the white space in space_. nullopt: none yet.
  std::optional<size_t> TakeContent(std::span<const std::string_view> markers, bool last, MessageDelta* out);
  void Content(std::string_view text, MessageDelta* out);
  void Consume(size_t n) { buffer_.erase(0, n); }

  std::string buffer_;
  std::string space_;        // before the marker: given back if it opens no call
  bool after_call_ = false;  // white space is dropped until content comes
  bool any_call_ = false;
};

// Follows a JSON object through its text.
class JsonSpan {
 public:
  // Bytes of `text` that belong to the object, which ends there if done().
  size_t Scan(std::string_view text);
  bool done() const { return done_; }

 private:
  size_t depth_ = 0;
  bool in_string_ = false, escaped_ = false, done_ = false;
};

class Cursor;

// Formats of the kind: open marker, head with the name, arguments, tail. The parser streams the arguments.
class CallParser : public BufferedParser {
 public:
  bool in_call() const override { return state_ != State::kText; }

 protected:
  enum class Verdict : uint8_t { kMore, kNo, kYes };
  struct Head {
    Verdict verdict = Verdict::kMore;
    size_t bytes = 0;  // of the head
    std::string name, id;
    std::optional<std::string> arguments;  // all of them, if they are not to follow
  };
  enum class Next : uint8_t { kMore, kCall, kText };
  struct Tail {
    Next next = Next::kMore;
    size_t bytes = 0;
  };
  struct Arguments {
    bool done = false;
    size_t bytes = 0;
    std::string json;
  };

  explicit CallParser(std::string_view open) : open_(open) {}
  // `text` begins behind the open marker, or behind a tail that announced another call.
  virtual Head ParseHead(std::string_view text, bool last) = 0;
  virtual Tail ParseTail(std::string_view text, bool last) = 0;
  // Markers that end the arguments wherever they come.
  virtual std::span<const std::string_view> ends() const = 0;
  // The default: one JSON object, as it is written.
  virtual Arguments ParseArguments(std::string_view text, bool last);
  // The tail of a call in a section of calls: `end`, then `begin` of another (left to its head) or
  // `section_end`.
  static Tail SectionTail(Cursor c, std::string_view end, std::string_view begin,
                          std::string_view section_end);
  virtual void BeginArguments() { span_ = JsonSpan(); }
  virtual void Opened() {}  // the open marker was found

 private:
  enum class State : uint8_t { kText, kHead, kArguments, kTail };
  bool Step(bool last, MessageDelta* out) final;
  bool StepHead(bool last, MessageDelta* out);
  bool StepArguments(bool last, MessageDelta* out);

  const std::string_view open_;
  State state_ = State::kText;
  bool first_ = true;  // of the calls behind one open marker
  JsonSpan span_;
};

// A place in a head, read piece by piece. Once it has failed or run out of text, everything after fails.
class Cursor {
 public:
  Cursor(std::string_view text, bool last) : text_(text), last_(last) {}
  Cursor& White();
  Cursor& Word(std::string_view word);       // exactly this
  bool Try(std::string_view word);           // this, or nothing is taken
  std::string Until(std::string_view word);  // up to it; it is taken as well
  std::string Name();                        // letters, digits, "_", "-", "."; at least one, and what ends it
  std::optional<std::string> JsonString();   // with its quotes
  char Peek();                               // '\0': no more text
  bool ok() const { return !failed_ && !short_; }
  bool needs_more() const { return short_ && !last_; }
  bool refused() const { return failed_ || (short_ && last_); }
  size_t at() const { return at_; }
  void Fail() { failed_ = true; }
  std::string_view rest() const { return text_.substr(at_); }

 private:
  std::string_view text_;
  bool last_;
  size_t at_ = 0;
  bool failed_ = false, short_ = false;
};

// Length of the longest suffix of `text` that is a proper prefix of one of `words`.
size_t PartialOfAny(std::string_view text, std::span<const std::string_view> words);
std::string JsonQuoted(std::string_view utf8);
bool TooDeep(std::string_view json);
// {"name", "arguments" or "parameters"} as a whole.
struct WholeCall {
  std::string name, arguments;
};
std::optional<WholeCall> ParseWholeCall(std::string_view json);

}  // namespace consilium::gateway
