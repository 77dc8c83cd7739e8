// gpt-oss: messages with a channel each. <|channel|>analysis<|message|> is reasoning, final is content,
// commentary is a call if it has a recipient "functions.name", else content.
#include "services/gateway/parsers/buffered_parser.h"
#include "services/gateway/parsers/formats.h"

namespace consilium::gateway {
namespace {

constexpr std::string_view kStart = "<|start|>", kChannel = "<|channel|>", kMessage = "<|message|>";
constexpr std::string_view kEnds[] = {"<|end|>", "<|return|>", "<|call|>", kStart, kChannel};
constexpr size_t kFirstMarker = 3;  // of kEnds: those that begin the next head
constexpr size_t kHeadBytesMax = 1024;

// The word behind `key` in a head, up to white space or a marker.
std::string WordBehind(std::string_view head, std::string_view key) {
  const size_t at = head.find(key);
  if (at == std::string_view::npos) return "";
  std::string_view rest = head.substr(at + key.size());
  return std::string(rest.substr(0, rest.find_first_of(" \t\r\n<")));
}

class Harmony final : public BufferedParser {
 public:
  explicit Harmony(bool tools) : tools_(tools) {}
  bool in_call() const override { return body_ == Body::kCall; }

 private:
  enum class Body : uint8_t { kHead, kContent, kReasoning, kCall };

  bool Step(bool last, MessageDelta* out) override {
    if (buffer_.empty()) return false;
    return body_ == Body::kHead ? StepHead(last, out) : StepBody(last, out);
  }
  bool StepHead(bool last, MessageDelta* out) {
    // Between messages only a marker or the rest of a role begins a head; all else is content.
    static constexpr std::string_view kBegins[] = {kStart, kChannel, kMessage, "assistant", " to="};
    bool possible = false;
    size_t marker = 0;  // bytes of the one that is there
    for (const std::string_view begin : kBegins) {
      const std::string_view here = std::string_view(buffer_).substr(0, begin.size());
      possible = possible || here == begin || (!last && begin.starts_with(here));
      if (here == begin) marker = begin.size();
    }
    const std::string_view text = std::string_view(buffer_).substr(0, kHeadBytesMax);
    const size_t end = possible ? text.find(kMessage) : std::string_view::npos;
    if (end == std::string_view::npos) {
      if (possible && !last && buffer_.size() < kHeadBytesMax) return false;
      Open(Body::kContent);
      if (marker > 0) Put(buffer_.substr(0, marker), out);  // no head after all: it stays as it was
      Consume(marker);
      return true;
    }
    const std::string head = buffer_.substr(0, end);
    Consume(end + kMessage.size());
    const std::string channel = WordBehind(head, kChannel), to = WordBehind(head, "to=");
    constexpr std::string_view kFunctions = "functions.";
    if (tools_ && to.starts_with(kFunctions)) {
      out->AddCall({true, "", to.substr(kFunctions.size()), ""});
      Open(Body::kCall);
    } else {
      const bool own_tool = !to.empty() && !to.starts_with(kFunctions);  // python, browser: not the client's
      Open(channel == "analysis" || own_tool ? Body::kReasoning : Body::kContent);
    }
    return true;
  }
  bool StepBody(bool last, MessageDelta* out) {
    size_t at = std::string::npos, which = 0;
    for (size_t i = 0; i < std::size(kEnds); ++i) {
      const size_t found = buffer_.find(kEnds[i]);
      if (found < at) at = found, which = i;
    }
    const bool found = at != std::string::npos;
    const size_t known = found ? at : buffer_.size() - (last ? 0 : PartialOfAny(buffer_, kEnds));
    if (known > 0) Put(buffer_.substr(0, known), out);
    Consume(found && which < kFirstMarker ? at + kEnds[which].size() : known);
    if (found) body_ = Body::kHead;
    return found;
  }
  void Open(Body body) {
    body_ = body;
    begun_ = false;
  }
  // Messages of the same kind are joined by newlines.
  void Put(const std::string& text, MessageDelta* out) {
    if (body_ == Body::kCall) return out->AddCall({false, "", "", text});
    const bool content = body_ == Body::kContent;
    bool& any = content ? any_content_ : any_reasoning_;
    std::string& to = content ? out->content : out->reasoning;
    if (!begun_ && any) to += "\n";
    begun_ = any = true;
    to += text;
  }

  const bool tools_;
  Body body_ = Body::kHead;
  bool begun_ = false;  // this message has text
  bool any_content_ = false, any_reasoning_ = false;
};

}  // namespace

std::unique_ptr<OutputParser> MakeHarmony(const ParserContext& context) {
  return std::make_unique<Harmony>(context.tools);
}

}  // namespace consilium::gateway
