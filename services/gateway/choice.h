// One choice of an answer: token events in; message and logprobs out. Pure: the output depends on
// the tokens only.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "services/gateway/api.h"
#include "services/gateway/stop_scanner.h"

namespace consilium::gateway {

// A token of the answer with its logprob, for "logprobs".
struct AnswerToken {
  TokenId token = 0;
  float logprob = 0;
  bool has_logprob = true;  // false: the first token of an echoed prompt
  std::vector<TokenLogprob> top;
  size_t text_begin = 0, text_end = 0;  // bytes of the choice's text (without echo)
  size_t chars = 0;                     // characters of its text
};

// What became certain since the last Take.
struct Delta : MessageDelta {  // completions: content only
  std::vector<AnswerToken> tokens;
  bool empty() const { return content.empty() && reasoning.empty() && calls.empty() && tokens.empty(); }
};

size_t Characters(std::string_view utf8);

class Choice {
 public:
  Choice(const ApiRequest& request, std::shared_ptr<const Tokenizer> tokenizer);
  // True: a stop string ended the choice here; the worker is to be told. Ignored when finished.
  bool OnToken(const SessionToken& event);
  void OnFinish(FinishReason reason);

  bool finished() const { return finish_.has_value(); }
  // "stop", "length", "tool_calls"; only when finished.
  std::string_view finish_reason() const;
  Delta Take() { return std::exchange(delta_, {}); }
  uint32_t tokens() const { return tokens_; }
  // Mean log-probability of the tokens, for best_of.
  double mean_logprob() const { return tokens_ == 0 ? 0 : logprob_sum_ / tokens_; }

 private:
  void Release(std::string_view text);
  void Add(MessageDelta parsed);
  void End(FinishReason reason, bool cut);

  const bool include_stop_, keep_logprobs_, parallel_calls_;
  const uint32_t min_tokens_;
  const std::vector<TokenId> stop_ids_;
  TextStream stream_;
  StopScanner stop_;
  std::unique_ptr<OutputParser> parser_;  // null: all is content
  std::vector<AnswerToken> waiting_;      // their text is not certain yet
  size_t decoded_ = 0, released_ = 0;     // bytes of text
  uint32_t tokens_ = 0;
  uint32_t calls_ = 0;
  double logprob_sum_ = 0;
  std::optional<FinishReason> finish_;
  Delta delta_;
};

}  // namespace consilium::gateway
