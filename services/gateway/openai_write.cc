// Answers of Generation as OpenAI's JSON and SSE.
#include <algorithm>

#include "common/base/hash.h"
#include "services/gateway/generation.h"
#include "services/gateway/json_out.h"

namespace consilium::gateway {
namespace {

void AppendBytes(std::string* out, const std::string& bytes) {
  *out += "[";
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) *out += ",";
    AppendInt(out, static_cast<unsigned>(static_cast<unsigned char>(bytes[i])));
  }
  *out += "]";
}

}  // namespace

void Generation::AppendHead(std::string* out, bool chunk) const {
  const bool chat = request_.endpoint == Endpoint::kChat;
  *out += chat ? "{\"id\":\"chatcmpl-" : "{\"id\":\"cmpl-";
  *out += identity_.id + "\",\"object\":\"";
  *out += !chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  *out += "\",\"created\":";
  AppendInt(out, identity_.created);
  *out += ",\"model\":";
  AppendString(out, identity_.model);
  *out += ",\"system_fingerprint\":";
  AppendString(out, identity_.fingerprint);
}

void Generation::AppendUsage(std::string* out) const {
  const Usage u = usage();
  *out += "\"usage\":{\"prompt_tokens\":";
  AppendInt(out, u.prompt);
  *out += ",\"completion_tokens\":";
  AppendInt(out, u.completion);
  *out += ",\"total_tokens\":";
  AppendInt(out, u.prompt + u.completion);
  *out += ",\"prompt_tokens_details\":{\"cached_tokens\":";
  AppendInt(out, u.cached);
  *out += "}}";
}

void Generation::BeginChunk(std::string* out) const {
  *out += "data: ";
  AppendHead(out, true);
  *out += ",\"choices\":[";
}

void Generation::EndChunk(std::string* out) const {
  if (request_.continuous_usage) {
    *out += "],";
    AppendUsage(out);
    *out += "}\n\n";
    return;
  }
  *out += request_.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n";
}

std::string Generation::CallId(uint32_t index, uint32_t call) const {
  uint64_t hash = Mix(index, call);
  for (const char c : identity_.id) hash = Mix(hash, static_cast<unsigned char>(c));
  std::string out = "call_";
  for (int i = 0; i < 16; ++i) out += "0123456789abcdef"[(hash >> (4 * i)) & 15];
  return out;
}

// `indexed`: as deltas, which carry the call's index. *begun: calls of the choice that have begun.
void Generation::AppendCalls(std::string* out, uint32_t index, uint32_t* begun,
                             const std::vector<CallDelta>& calls, bool indexed) const {
  *out += "\"tool_calls\":[";
  for (size_t i = 0; i < calls.size(); ++i) {
    const CallDelta& call = calls[i];
    if (call.begins) ++*begun;
    *out += i > 0 ? ",{" : "{";
    if (indexed) {
      *out += "\"index\":";
      AppendInt(out, *begun - 1);
      *out += ",";
    }
    if (call.begins) {
      *out += "\"id\":";
      AppendString(out, call.id.empty() ? CallId(index, *begun - 1) : call.id);
      *out += ",\"type\":\"function\",\"function\":{\"name\":";
      AppendString(out, call.name);
      *out += ",";
    } else {
      *out += "\"function\":{";
    }
    *out += "\"arguments\":";
    AppendString(out, call.arguments);
    *out += "}}";
  }
  *out += "]";
}

void Generation::AppendChatLogprobs(std::string* out, const std::vector<AnswerToken>& tokens) const {
  const auto entry = [&](TokenId token, float logprob) {
    *out += "{\"token\":";
    AppendString(out, tokenizer_->TokenText(token));
    *out += ",\"logprob\":";
    AppendLogprob(out, logprob);
    *out += ",\"bytes\":";
    AppendBytes(out, tokenizer_->TokenBytes(token));
  };
  *out += "{\"content\":[";
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) *out += ",";
    entry(tokens[i].token, tokens[i].logprob);
    *out += ",\"top_logprobs\":[";
    for (size_t k = 0; k < tokens[i].top.size(); ++k) {
      if (k > 0) *out += ",";
      entry(tokens[i].top[k].id, tokens[i].top[k].logprob);
      *out += "}";
    }
    *out += "]}";
  }
  *out += "],\"refusal\":null}";
}

// *chars: where the first token's text begins in the answer; moved behind the last one.
void Generation::AppendCompletionLogprobs(std::string* out, const std::vector<AnswerToken>& tokens,
                                          size_t* chars) const {
  std::string offsets, names, values, tops;
  for (const AnswerToken& t : tokens) {
    if (!names.empty()) offsets += ",", names += ",", values += ",", tops += ",";
    AppendInt(&offsets, *chars);
    const std::string text = tokenizer_->TokenText(t.token);
    AppendString(&names, text);
    *chars += t.chars;
    if (!t.has_logprob) {
      values += "null";
      tops += "null";
      continue;
    }
    AppendLogprob(&values, t.logprob);
    tops += "{";
    bool sampled = false;
    for (size_t k = 0; k < t.top.size(); ++k) {
      if (k > 0) tops += ",";
      sampled = sampled || t.top[k].id == t.token;
      AppendString(&tops, tokenizer_->TokenText(t.top[k].id));
      tops += ":";
      AppendLogprob(&tops, t.top[k].logprob);
    }
    if (!sampled) {
      if (!t.top.empty()) tops += ",";
      AppendString(&tops, text);
      tops += ":";
      AppendLogprob(&tops, t.logprob);
    }
    tops += "}";
  }
  *out += "{\"text_offset\":[" + offsets + "],\"token_logprobs\":[" + values + "],\"tokens\":[" + names +
          "],\"top_logprobs\":[" + tops + "]}";
}

void Generation::StreamChat(uint32_t index, Sent* sent, Delta delta, const Choice& choice, std::string* out) {
  const auto begin = [&] {
    BeginChunk(out);
    *out += "{\"index\":";
    AppendInt(out, index);
    *out += ",\"delta\":{";
  };
  const auto end = [&](const std::vector<AnswerToken>* tokens, std::string_view finish) {
    *out += "},\"logprobs\":";
    if (tokens == nullptr || request_.top_logprobs < 0)
      *out += "null";
    else
      AppendChatLogprobs(out, *tokens);
    *out += ",\"finish_reason\":";
    if (finish.empty())
      *out += "null";
    else
      AppendString(out, finish);
    *out += "}";
    EndChunk(out);
  };
  if (!sent->begun) {
    begin();
    *out += "\"role\":\"assistant\",\"content\":\"\"";
    end(nullptr, "");
    sent->begun = true;
  }
  if (!delta.empty()) {
    begin();
    const char* comma = "";
    if (!delta.reasoning.empty()) {
      *out += "\"reasoning_content\":";
      AppendString(out, delta.reasoning);
      comma = ",";
    }
    if (!delta.content.empty() || (delta.calls.empty() && delta.reasoning.empty())) {
      *out += comma;
      *out += "\"content\":";
      AppendString(out, delta.content);
      comma = ",";
    }
    if (!delta.calls.empty()) {
      *out += comma;
      AppendCalls(out, index, &sent->calls, delta.calls, true);
    }
    end(&delta.tokens, "");
  }
  if (choice.finished() && !sent->finished) {
    sent->finished = true;
    begin();
    end(nullptr, choice.finish_reason());
  }
}

void Generation::StreamCompletion(uint32_t index, size_t part, Sent* sent, Delta delta, const Choice& choice,
                                  std::string* out) {
  std::string text;
  std::vector<AnswerToken> tokens;
  if (!sent->begun && request_.echo) {
    text = EchoText(part);
    tokens = parts_[part].echo;
  }
  text += delta.content;
  tokens.insert(tokens.end(), std::make_move_iterator(delta.tokens.begin()),
                std::make_move_iterator(delta.tokens.end()));
  const bool finish = choice.finished() && !sent->finished;
  if (text.empty() && tokens.empty() && !finish) return;
  sent->begun = true;
  sent->finished = sent->finished || finish;
  BeginChunk(out);
  *out += "{\"index\":";
  AppendInt(out, index);
  *out += ",\"text\":";
  AppendString(out, text);
  *out += ",\"logprobs\":";
  if (request_.top_logprobs < 0)
    *out += "null";
  else
    AppendCompletionLogprobs(out, tokens, &sent->text_chars);
  *out += ",\"finish_reason\":";
  if (finish)
    AppendString(out, choice.finish_reason());
  else
    *out += "null";
  *out += "}";
  EndChunk(out);
}

void Generation::StreamChoice(size_t part, uint32_t c, std::string* out) {
  const uint32_t index = static_cast<uint32_t>(part) * request_.n + c;
  Choice& choice = parts_[part].choices[c];
  Sent& sent = sent_[index];
  if (sent.finished || (choice.tokens() == 0 && !choice.finished())) return;
  Delta delta = choice.Take();
  if (request_.endpoint == Endpoint::kChat) {
    StreamChat(index, &sent, std::move(delta), choice, out);
  } else {
    StreamCompletion(index, part, &sent, std::move(delta), choice, out);
  }
}

std::string Generation::TakeEvents() {
  std::string out;
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (!EchoReady(parts_[p])) continue;  // the prompt's logprobs come first
    for (uint32_t c = 0; c < request_.n; ++c) StreamChoice(p, c, &out);
  }
  if (!done() || usage_sent_) return out;
  usage_sent_ = true;
  if (request_.include_usage) {
    BeginChunk(&out);
    out += "],";
    AppendUsage(&out);
    out += "}\n\n";
  }
  return out + "data: [DONE]\n\n";
}

void Generation::AppendMessage(std::string* out, uint32_t index, const Delta& delta) const {
  *out += ",\"message\":{\"role\":\"assistant\",\"content\":";
  if (delta.content.empty() && (!delta.calls.empty() || !delta.reasoning.empty()))
    *out += "null";
  else
    AppendString(out, delta.content);
  *out += ",\"refusal\":null";
  if (!delta.reasoning.empty()) {
    *out += ",\"reasoning_content\":";
    AppendString(out, delta.reasoning);
  }
  if (!delta.calls.empty()) {
    uint32_t begun = 0;
    *out += ",";
    AppendCalls(out, index, &begun, delta.calls, false);
  }
  *out += "}";
}

std::string Generation::Response() {
  std::string out;
  AppendHead(&out, false);
  out += ",\"choices\":[";
  for (size_t p = 0; p < parts_.size(); ++p) {
    uint32_t rank = 0;
    for (const uint32_t c : BestChoices(p)) {
      const uint32_t index = static_cast<uint32_t>(p) * request_.n + rank++;
      Choice& choice = parts_[p].choices[c];
      Delta delta = choice.Take();
      out += index > 0 ? ",{\"index\":" : "{\"index\":";
      AppendInt(&out, index);
      if (request_.endpoint == Endpoint::kChat) {
        AppendMessage(&out, index, delta);
        out += ",\"logprobs\":";
        if (request_.top_logprobs < 0)
          out += "null";
        else
          AppendChatLogprobs(&out, delta.tokens);
      } else {
        std::string text = request_.echo ? EchoText(p) : "";
        std::vector<AnswerToken> tokens = parts_[p].echo;
        tokens.insert(tokens.end(), delta.tokens.begin(), delta.tokens.end());
        out += ",\"text\":";
        AppendString(&out, text + delta.content);
        size_t chars = 0;
        out += ",\"logprobs\":";
        if (request_.top_logprobs < 0)
          out += "null";
        else
          AppendCompletionLogprobs(&out, tokens, &chars);
      }
      out += ",\"finish_reason\":";
      AppendString(&out, choice.finish_reason());
      out += "}";
    }
  }
  out += "],";
  AppendUsage(&out);
  return out + "}";
}

}  // namespace consilium::gateway
