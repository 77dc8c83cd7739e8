// One API request from its validated form to its answer: submissions out, token events in, JSON or SSE out.
// Pure: no clock, lock or I/O. A request has one submission for each prompt; choices are indexed prompt * n +
// i.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "services/gateway/api.h"
#include "services/gateway/choice.h"
#include "services/gateway/token_stream.h"

namespace consilium::gateway {

// What the answer says of itself.
struct Identity {
  std::string id;  // without prefix
  int64_t created = 0;
  std::string model;
  std::string fingerprint;  // system_fingerprint; set before the first output
};
struct Usage {
  uint64_t prompt = 0, completion = 0, cached = 0;
};

class Generation {
 public:
  Generation(ApiRequest request, std::shared_ptr<const Tokenizer> tokenizer, Identity identity, uint64_t seed,
             uint32_t context_tokens);

  size_t submissions() const { return parts_.size(); }
  // All but `request`, `request_id`, `manifest` and `budget_ms`. attempt > 0: with the history to resume
  // from.
  SessionSubmit MakeSubmit(size_t part, uint32_t attempt) const;
  // Choices a resumed submission must not compute again.
  std::vector<uint32_t> FinishedChoices(size_t part) const;
  uint64_t PrefixHash(size_t part) const;

  void set_fingerprint(std::string fingerprint) { identity_.fingerprint = std::move(fingerprint); }
  void OnAccepted(size_t part, uint32_t cached_tokens);
  // *cancel: a stop string ended this choice.
  Push OnToken(size_t part, const SessionToken& event, bool* cancel);
  void OnFinish(size_t part, const SessionFinish& event);

  bool stream() const { return request_.stream; }
  bool part_done(size_t part) const;
  bool done() const;
  // Streaming: SSE events for what became certain since the last call; with the last one usage and [DONE].
  std::string TakeEvents();
  // Not streaming: the answer, when done.
  std::string Response();
  Usage usage() const;
  std::vector<std::string_view> finish_reasons() const;  // of the choices reported, when done
  const ApiRequest& request() const { return request_; }
  uint64_t seed() const { return seed_; }
  bool any_output() const { return any_output_; }

 private:
  struct Part {
    TokenStream tokens;
    std::vector<Choice> choices;
    std::vector<AnswerToken> echo;  // the prompt's tokens
    size_t echo_have = 1;           // logprobs that have come (the first token has none)
    std::optional<uint32_t> cached;
  };
  struct Sent {  // streaming state of a choice
    bool begun = false, finished = false;
    uint32_t calls = 0;
    size_t text_chars = 0;  // where the next token's text begins, in characters (echo included)
  };

  bool WantsPromptLogprobs() const { return request_.echo && request_.top_logprobs >= 0; }
  bool EchoReady(const Part& part) const;
  std::string EchoText(size_t part) const;
  void PrepareEcho(size_t part);
  void StreamChoice(size_t part, uint32_t choice, std::string* out);
  void StreamChat(uint32_t index, Sent* sent, Delta delta, const Choice& choice, std::string* out);
  void StreamCompletion(uint32_t index, size_t part, Sent* sent, Delta delta, const Choice& choice,
                        std::string* out);
  void BeginChunk(std::string* out) const;
  void EndChunk(std::string* out) const;
  void AppendHead(std::string* out, bool chunk) const;
  void AppendUsage(std::string* out) const;
  std::vector<uint32_t> BestChoices(size_t part) const;
  std::string CallId(uint32_t index, uint32_t call) const;
  void AppendCalls(std::string* out, uint32_t index, uint32_t* begun, const std::vector<CallDelta>& calls,
                   bool indexed) const;
  void AppendChatLogprobs(std::string* out, const std::vector<AnswerToken>& tokens) const;
  void AppendCompletionLogprobs(std::string* out, const std::vector<AnswerToken>& tokens,
                                size_t* chars) const;
  void AppendMessage(std::string* out, uint32_t index, const Delta& delta) const;

  const ApiRequest request_;
  const std::shared_ptr<const Tokenizer> tokenizer_;  // shared with the model
  Identity identity_;
  const uint64_t seed_;
  const uint32_t context_tokens_;
  std::vector<Part> parts_;
  std::vector<Sent> sent_;  // by index
  bool usage_sent_ = false;
  bool any_output_ = false;
};

}  // namespace consilium::gateway
