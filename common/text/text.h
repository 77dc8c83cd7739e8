// Text processing: tokenizer, streaming detokenizer and chat template, by the field's own libraries
// (tokenizers, minijinja) behind the C interface of common/text/rust.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"

namespace consilium {

// Immutable; may be used from any thread.
class Tokenizer {
 public:
  // `json`: the text of tokenizer.json. INVALID_ARGUMENT names what is wrong.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromJson(std::string_view json);
  virtual ~Tokenizer() = default;
  // `text` must be valid UTF-8 (else INVALID_ARGUMENT). add_special: as the tokenizer's post-processor says
  // (BOS).
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool add_special) const = 0;
  virtual absl::StatusOr<std::string> Decode(const std::vector<TokenId>& ids, bool skip_special) const = 0;
  // What the token stands for: its bytes ("" for an unknown id), which need not be whole UTF-8 characters;
  // and as text for "tokens" of logprobs: bytes that are not UTF-8 are written "bytes:\\xe4\\xbd", as OpenAI
  // does.
  virtual const std::string& TokenBytes(TokenId id) const = 0;
  virtual std::string TokenText(TokenId id) const = 0;
  virtual bool IsSpecial(TokenId id) const = 0;  // left out by skip_special
  virtual size_t vocab_size() const = 0;         // highest id + 1
};

// Detokenizes one stream: Step returns the text that became certain with this token ("" while a UTF-8
// sequence is incomplete); Flush returns what is held back at the end. Bytes that cannot be UTF-8 become
// U+FFFD, one for each maximal subpart (as HF's decode). The concatenation depends on the tokens only.
class TextStream {
 public:
  // `kept`: special tokens that stay in the text though special ones are skipped; null: none.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special,
             std::shared_ptr<const std::vector<TokenId>> kept = nullptr)
      : tokenizer_(std::move(tokenizer)), kept_(std::move(kept)), skip_special_(skip_special) {}
  std::string Step(TokenId id);
  std::string Flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;        // shared with all streams
  std::shared_ptr<const std::vector<TokenId>> kept_;  // shared with all streams
  bool skip_special_;
  std::string held_;  // at most 3 bytes: the start of a character
};

// Moves the longest prefix of `*bytes` that is decided to the result: whole characters, and U+FFFD for what
// cannot be UTF-8. `last`: nothing follows, so that all is decided.
std::string TakeUtf8(std::string* bytes, bool last);
bool IsUtf8(std::string_view text);

class ChatTemplate {
 public:
  static absl::StatusOr<std::shared_ptr<const ChatTemplate>> FromSource(std::string_view jinja);
  virtual ~ChatTemplate() = default;
  // `context`: a JSON object with messages, tools, add_generation_prompt, bos_token, ...
  virtual absl::StatusOr<std::string> Render(std::string_view context_json) const = 0;
};

}  // namespace consilium
