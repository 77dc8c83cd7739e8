#include "services/gateway/parsers/buffered_parser.h"
#include "services/gateway/parsers/formats.h"
#include "services/gateway/stop_scanner.h"

namespace consilium::gateway {
namespace {

class Plain final : public OutputParser {
 public:
  void Feed(std::string_view text, MessageDelta* out) override { out->content += text; }
  void Flush(MessageDelta*) override {}
};

// White space around the reasoning belongs to neither side. Markers within a call are part of it.
class Think final : public BufferedParser {
 public:
  Think(std::string_view open, std::string_view close, bool thinking, std::unique_ptr<OutputParser> inner)
      : markers_{open, close}, inner_(std::move(inner)), thinking_(thinking), trim_(thinking) {}
  bool in_call() const override { return !thinking_ && inner_->in_call(); }

 private:
  bool Step(bool last, MessageDelta* out) override {
    return thinking_ ? StepIn(last, out) : StepOut(last, out);
  }

  bool StepIn(bool last, MessageDelta* out) {
    const std::span<const std::string_view> close(&markers_[1], 1);
    if (trim_) Consume(std::min(buffer_.find_first_not_of(kWhite), buffer_.size()));
    if (buffer_.empty()) return false;
    const size_t at = buffer_.find(close[0]);
    const bool found = at != std::string::npos;
    const size_t known = found ? at : buffer_.size() - (last ? 0 : PartialOfAny(buffer_, close));
    size_t end = known;
    if (found || !last) {
      const size_t solid = std::string_view(buffer_).substr(0, known).find_last_not_of(kWhite);
      end = solid == std::string::npos ? 0 : solid + 1;
    }
    if (end > 0) trim_ = false, any_reasoning_ = true;
    out->reasoning.append(buffer_, 0, end);
    Consume(found ? at + close[0].size() : end);
    if (!found) return false;
    thinking_ = false;
    trim_ = true;
    return true;
  }
  bool StepOut(bool last, MessageDelta* out) {
    if (trim_) {
      Consume(std::min(buffer_.find_first_not_of(kWhite), buffer_.size()));
      if (buffer_.empty()) return false;
    }
    size_t at = std::string::npos;
    size_t which = 0;
    for (size_t i = 0; i < 2; ++i) {
      const size_t found = buffer_.find(markers_[i]);
      if (found < at) at = found, which = i;
    }
    const bool found = at != std::string::npos;
    const size_t known = found ? at : buffer_.size() - (last ? 0 : PartialOfAny(buffer_, markers_));
    // White space waits: it goes out with what follows it, if that is no reasoning.
    const size_t solid = std::string_view(buffer_).substr(0, known).find_last_not_of(kWhite);
    size_t end = solid == std::string::npos ? 0 : solid + 1;
    if (last && !found) end = known;
    if (end > 0) trim_ = false;
    Forward(end, out);
    if (!found) return false;
    const size_t marker = at - end + markers_[which].size();
    if (inner_->in_call()) {
      Forward(marker, out);
      return true;
    }
    Consume(marker);
    trim_ = true;
    thinking_ = which == 0;
    if (thinking_ && any_reasoning_) out->reasoning += "\n";
    return true;
  }
  void Ended(MessageDelta* out) override { inner_->Flush(out); }
  void Forward(size_t n, MessageDelta* out) {
    if (n > 0) inner_->Feed(std::string_view(buffer_).substr(0, n), out);
    Consume(n);
  }

  const std::string_view markers_[2];
  const std::unique_ptr<OutputParser> inner_;
  bool thinking_;
  bool trim_;  // white space is dropped until text comes
  bool any_reasoning_ = false;
};

}  // namespace

std::unique_ptr<OutputParser> MakePlain(const ParserContext&) { return std::make_unique<Plain>(); }

std::unique_ptr<OutputParser> MakeThink(std::string_view open, std::string_view close,
                                        const ParserContext& context, std::unique_ptr<OutputParser> inner) {
  return std::make_unique<Think>(open, close, context.starts_thinking, std::move(inner));
}

}  // namespace consilium::gateway
