#include "services/gateway/choice.h"

#include <algorithm>

namespace consilium::gateway {

size_t Characters(std::string_view utf8) {
  return static_cast<size_t>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

Choice::Choice(const ApiRequest& request, std::shared_ptr<const Tokenizer> tokenizer)
    : include_stop_(request.include_stop),
      keep_logprobs_(request.top_logprobs >= 0),
      parallel_calls_(request.parallel_tool_calls),
      min_tokens_(request.min_tokens),
      stop_ids_(request.stop_ids),
      stream_(std::move(tokenizer), request.skip_special, request.kept()),
      stop_(request.stop, request.include_stop),
      parser_(request.format == nullptr ? nullptr : request.format->Make(request.parser)) {}

bool Choice::OnToken(const SessionToken& event) {
  if (finished()) return false;
  ++tokens_;
  logprob_sum_ += event.logprob;
  const bool stops = std::find(stop_ids_.begin(), stop_ids_.end(), event.token) != stop_ids_.end();
  if (stops && !include_stop_) return false;  // counted, but no part of the text; its finish follows
  const size_t begin = decoded_;
  const std::string text = stream_.Step(event.token);
  decoded_ += text.size();
  if (keep_logprobs_)
    waiting_.push_back({event.token, event.logprob, true, event.top, begin, decoded_, Characters(text)});
  std::string certain;
  if (tokens_ < min_tokens_) {
    certain = text;
  } else if (stop_.Feed(text, &certain)) {
    Release(certain);
    End(FinishReason::kStop, true);
    return true;
  }
  Release(certain);
  return false;
}

void Choice::OnFinish(FinishReason reason) {
  if (finished()) return;
  const std::string tail = stream_.Flush();
  decoded_ += tail.size();
  std::string certain;
  const bool cut = stop_.Feed(tail, &certain);
  if (!cut) stop_.Flush(&certain);
  Release(certain);
  End(cut ? FinishReason::kStop : reason, cut);
}

void Choice::Release(std::string_view text) {
  released_ += text.size();
  if (parser_) {
    MessageDelta parsed;
    parser_->Feed(text, &parsed);
    Add(std::move(parsed));
  } else {
    delta_.content += text;
  }
  // A token goes out with its text; one without text (a part of a character) when text behind it went out.
  const auto out = [&](const AnswerToken& t) {
    return t.text_begin < t.text_end ? t.text_end <= released_ : t.text_begin < released_;
  };
  size_t n = 0;
  while (n < waiting_.size() && out(waiting_[n])) delta_.tokens.push_back(std::move(waiting_[n++]));
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(n));
}

void Choice::Add(MessageDelta parsed) {
  delta_.content += parsed.content;
  delta_.reasoning += parsed.reasoning;
  for (CallDelta& call : parsed.calls) {
    if (call.begins) ++calls_;
    if (calls_ == 1 || parallel_calls_) delta_.AddCall(std::move(call));
  }
}

// `cut`: the text ended inside what was decoded; tokens that begin behind it are no part of the answer.
void Choice::End(FinishReason reason, bool cut) {
  finish_ = reason;
  if (parser_) {
    MessageDelta parsed;
    parser_->Flush(&parsed);
    Add(std::move(parsed));
  }
  for (AnswerToken& t : waiting_) {
    if (!cut || t.text_begin < released_) delta_.tokens.push_back(std::move(t));
  }
  waiting_.clear();
}

std::string_view Choice::finish_reason() const {
  if (*finish_ == FinishReason::kLength) return "length";
  return calls_ > 0 ? "tool_calls" : "stop";
}

}  // namespace consilium::gateway
