#include "common/text/text.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/text/consilium_text.h"

namespace consilium {
namespace {

std::string Take(ct_buffer buffer) {
  std::string out(reinterpret_cast<const char*>(buffer.data), buffer.len);
  ct_buffer_free(buffer);
  return out;
}

class RustTokenizer final : public Tokenizer {
 public:
  explicit RustTokenizer(ct_tokenizer* handle) : handle_(handle) {}
  ~RustTokenizer() override { ct_tokenizer_free(handle_); }

  absl::Status ReadTokens() {
    const size_t size = ct_tokenizer_vocab_size(handle_);
    tokens_.resize(size);
    special_.resize(size);
    for (size_t id = 0; id < size; ++id) {
      ct_buffer out{}, error{};
      int special = 0;
      if (ct_token_bytes(handle_, static_cast<uint32_t>(id), &special, &out, &error) != 0)
        return InvalidArgument("token " + std::to_string(id) + ": " + Take(error));
      tokens_[id] = Take(out);
      special_[id] = special != 0;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool add_special) const override {
    ct_ids ids{};
    ct_buffer error{};
    if (ct_encode(handle_, text.data(), text.size(), add_special, &ids, &error) != 0)
      return InvalidArgument("cannot tokenize: " + Take(error));
    std::vector<TokenId> out(ids.data, ids.data + ids.len);
    ct_ids_free(ids);
    return out;
  }
  absl::StatusOr<std::string> Decode(const std::vector<TokenId>& ids, bool skip_special) const override {
    ct_buffer out{}, error{};
    if (ct_decode(handle_, ids.data(), ids.size(), skip_special, &out, &error) != 0)
      return InvalidArgument("cannot detokenize: " + Take(error));
    return Take(out);
  }
  const std::string& TokenBytes(TokenId id) const override {
    static const std::string none;
    return id < tokens_.size() ? tokens_[id] : none;
  }
  std::string TokenText(TokenId id) const override {
    const std::string& bytes = TokenBytes(id);
    if (IsUtf8(bytes)) return bytes;
    static constexpr char kHex[] = "0123456789abcdef";
    std::string out = "bytes:";
    for (const unsigned char c : bytes) {
      out += "\\x";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    }
    return out;
  }
  bool IsSpecial(TokenId id) const override { return id < special_.size() && special_[id]; }
  size_t vocab_size() const override { return tokens_.size(); }

 private:
  ct_tokenizer* const handle_;
  std::vector<std::string> tokens_;
  std::vector<bool> special_;
};

class RustTemplate final : public ChatTemplate {
 public:
  explicit RustTemplate(ct_template* handle) : handle_(handle) {}
  ~RustTemplate() override { ct_template_free(handle_); }
  absl::StatusOr<std::string> Render(std::string_view context_json) const override {
    ct_buffer out{}, error{};
    if (ct_template_render(handle_, context_json.data(), context_json.size(), &out, &error) != 0)
      return InvalidArgument("chat template: " + Take(error));
    return Take(out);
  }

 private:
  ct_template* const handle_;
};

struct Utf8Unit {
  size_t bytes = 0;  // length of the character, or of the maximal subpart that cannot become one
  bool valid = false;
  bool cut = false;  // a character that may be completed by more bytes
};

// The first character of `s` (not empty), by table 3-7 of the Unicode standard.
Utf8Unit FirstUnit(std::string_view s) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {1, true, false};
  const size_t need = lead >= 0xC2 && lead <= 0xDF   ? 2
                      : lead >= 0xE0 && lead <= 0xEF ? 3
                      : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                     : 0;
  if (need == 0) return {1, false, false};
  for (size_t i = 1; i < need; ++i) {
    if (i == s.size()) return {i, false, true};
    unsigned char low = 0x80, high = 0xBF;
    if (i == 1 && lead == 0xE0) low = 0xA0;
    if (i == 1 && lead == 0xED) high = 0x9F;
    if (i == 1 && lead == 0xF0) low = 0x90;
    if (i == 1 && lead == 0xF4) high = 0x8F;
    if (at(i) < low || at(i) > high) return {i, false, false};
  }
  return {need, true, false};
}

}  // namespace

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = FirstUnit(text);
    if (!unit.valid) return false;
    text.remove_prefix(unit.bytes);
  }
  return true;
}

std::string TakeUtf8(std::string* bytes, bool last) {
  std::string out;
  std::string_view rest = *bytes;
  while (!rest.empty()) {
    const Utf8Unit unit = FirstUnit(rest);
    if (unit.cut && !last) break;
    if (unit.valid) {
      out.append(rest.substr(0, unit.bytes));
    } else {
      out += "\xEF\xBF\xBD";
    }
    rest.remove_prefix(unit.bytes);
  }
  bytes->erase(0, bytes->size() - rest.size());
  return out;
}

std::string TextStream::Step(TokenId id) {
  const bool kept = kept_ != nullptr && std::find(kept_->begin(), kept_->end(), id) != kept_->end();
  if (skip_special_ && !kept && tokenizer_->IsSpecial(id)) return "";
  held_ += tokenizer_->TokenBytes(id);
  return TakeUtf8(&held_, false);
}

std::string TextStream::Flush() { return TakeUtf8(&held_, true); }

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromJson(std::string_view json) {
  ct_tokenizer* handle = nullptr;
  ct_buffer error{};
  if (ct_tokenizer_new(json.data(), json.size(), &handle, &error) != 0)
    return InvalidArgument("tokenizer.json: " + Take(error));
  auto tokenizer = std::make_shared<RustTokenizer>(handle);
  RETURN_IF_ERROR(tokenizer->ReadTokens());
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::StatusOr<std::shared_ptr<const ChatTemplate>> ChatTemplate::FromSource(std::string_view jinja) {
  ct_template* handle = nullptr;
  ct_buffer error{};
  if (ct_template_new(jinja.data(), jinja.size(), &handle, &error) != 0)
    return InvalidArgument("chat template: " + Take(error));
  return std::shared_ptr<const ChatTemplate>(std::make_shared<RustTemplate>(handle));
}

}  // namespace consilium
