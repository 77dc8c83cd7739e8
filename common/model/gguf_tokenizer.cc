#include "common/model/gguf_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>

#include "common/base/status.h"
#include "common/model/gguf_pretokenizers.h"
#include "common/model/json_text.h"

namespace consilium {
namespace {

constexpr size_t kVocabMax = size_t{1} << 24;
constexpr size_t kPieceCharactersMax = 256;  // of pieces that merges are derived for

size_t CharacterBytes(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

struct Vocabulary {
  const std::vector<std::string>* tokens = nullptr;
  const std::vector<int64_t>* types = nullptr;       // null: all normal
  std::unordered_map<std::string_view, size_t> ids;  // only looked up
  int64_t Type(size_t id) const { return types == nullptr ? 1 : (*types)[id]; }
};

absl::StatusOr<Vocabulary> ReadVocabulary(const Gguf& gguf, const std::string& source) {
  Vocabulary v;
  v.tokens = gguf.Texts("tokenizer.ggml.tokens");
  v.types = gguf.Integers("tokenizer.ggml.token_type");
  if (v.tokens == nullptr || v.tokens->empty())
    return InvalidArgument(source + ": tokenizer.ggml.tokens: missing; put a tokenizer.json beside the file");
  if (v.tokens->size() > kVocabMax)
    return InvalidArgument(source + ": tokenizer.ggml.tokens: more than " + std::to_string(kVocabMax));
  if (v.types != nullptr && v.types->size() != v.tokens->size())
    return InvalidArgument(source + ": tokenizer.ggml.token_type: expected " +
                           std::to_string(v.tokens->size()) + " entries, got " +
                           std::to_string(v.types->size()));
  for (size_t i = 0; i < v.tokens->size(); ++i) v.ids.emplace((*v.tokens)[i], i);
  return v;
}

// The token of an id key; nullptr when the key is absent.
absl::StatusOr<const std::string*> TokenOf(const Gguf& gguf, const Vocabulary& v, const std::string& key,
                                           const std::string& source) {
  ASSIGN_OR_RETURN(const auto id, gguf.Integer("tokenizer.ggml." + key));
  if (!id) return nullptr;
  if (*id < 0 || static_cast<uint64_t>(*id) >= v.tokens->size())
    return InvalidArgument(source + ": tokenizer.ggml." + key + ": " + std::to_string(*id) +
                           " is no token; there are " + std::to_string(v.tokens->size()));
  return &(*v.tokens)[static_cast<size_t>(*id)];
}

// Control tokens are special; user-defined ones are found in text as they are.
Json AddedTokens(const Vocabulary& v) {
  Json out = Json::array();
  for (size_t i = 0; i < v.tokens->size(); ++i) {
    const int64_t type = v.Type(i);
    if (type != 2 && type != 3 && type != 4) continue;
    out.push_back({{"id", i},
                   {"content", (*v.tokens)[i]},
                   {"single_word", false},
                   {"lstrip", false},
                   {"rstrip", false},
                   {"normalized", false},
                   {"special", type != 4}});
  }
  return out;
}

Json VocabularyJson(const Vocabulary& v) {
  Json out = Json::object();
  for (size_t i = 0; i < v.tokens->size(); ++i) {
    // A doubled text keeps its first id; the other one is never produced.
    out.emplace((*v.tokens)[i], i);
  }
  return out;
}

absl::StatusOr<Json> PostProcessor(const Gguf& gguf, const Vocabulary& v, bool bos_by_default,
                                   const std::string& source) {
  ASSIGN_OR_RETURN(const auto add, gguf.Bool("tokenizer.ggml.add_bos_token"));
  ASSIGN_OR_RETURN(const std::string* bos, TokenOf(gguf, v, "bos_token_id", source));
  if (!add.value_or(bos_by_default) || bos == nullptr) return Json(nullptr);
  const Json special = {{"SpecialToken", {{"id", *bos}, {"type_id", 0}}}};
  const auto sequence = [](const char* id, int type) {
    return Json{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  return Json{
      {"type", "TemplateProcessing"},
      {"single", Json::array({special, sequence("A", 0)})},
      {"pair", Json::array({special, sequence("A", 0), sequence("B", 1)})},
      {"special_tokens",
       {{*bos, {{"id", *bos}, {"ids", Json::array({v.ids.at(*bos)})}, {"tokens", Json::array({*bos})}}}}}};
}

absl::StatusOr<Json> ByteLevel(const Gguf& gguf, const Vocabulary& v, const std::string& source) {
  ASSIGN_OR_RETURN(const auto given, gguf.Text("tokenizer.ggml.pre"));
  const std::string pre = given.value_or("default");
  const GgufPreTokenizer* found = FindGgufPreTokenizer(pre);
  if (found == nullptr) {
    return Unimplemented(source + ": tokenizer.ggml.pre: \"" + pre.substr(0, 60) +
                         "\" is not known (known: " + GgufPreTokenizerNames() +
                         "); put a tokenizer.json beside the file");
  }
  const std::vector<std::string>* merges = gguf.Texts("tokenizer.ggml.merges");
  if (merges == nullptr) return InvalidArgument(source + ": tokenizer.ggml.merges: missing");
  Json pairs = Json::array();
  for (const std::string& merge : *merges) {
    const size_t blank = merge.find(' ', 1);
    if (blank == std::string::npos || blank + 1 >= merge.size())
      return InvalidArgument(source + ": tokenizer.ggml.merges: expected two parts, got \"" +
                             merge.substr(0, 60) + "\"");
    std::string left = merge.substr(0, blank), right = merge.substr(blank + 1);
    if (!v.ids.contains(left) || !v.ids.contains(right) || !v.ids.contains(left + right))
      return InvalidArgument(source + ": tokenizer.ggml.merges: \"" + merge.substr(0, 60) +
                             "\" is not of tokens");
    pairs.push_back(Json::array({std::move(left), std::move(right)}));
  }
  const auto level = [](bool regex, bool prefix) {
    return Json{
        {"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"trim_offsets", true}, {"use_regex", regex}};
  };
  Json split = level(true, false);  // its own expression is GPT-2's
  if (pre != "gpt-2") {
    Json steps = Json::array();
    for (std::string_view regex : found->splits) {
      if (regex.empty()) break;
      steps.push_back({{"type", "Split"},
                       {"pattern", {{"Regex", std::string(regex)}}},
                       {"behavior", "Isolated"},
                       {"invert", false}});
    }
    steps.push_back(level(false, false));
    split = {{"type", "Sequence"}, {"pretokenizers", steps}};
  }
  Json out;
  out["normalizer"] = found->nfc ? Json{{"type", "NFC"}} : Json(nullptr);
  out["pre_tokenizer"] = split;
  ASSIGN_OR_RETURN(out["post_processor"], PostProcessor(gguf, v, found->bos, source));
  out["decoder"] = level(true, true);
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"fuse_unk", false},
                  {"byte_fallback", false},
                  {"ignore_merges", found->ignore_merges},
                  {"merges", pairs},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr}};
  return out;
}

// Merges of a SentencePiece BPE: every way to split a piece into two pieces, best score first, as
// Transformers derives them (convert_slow_tokenizer.py, generate_merges).
struct Merge {
  std::string_view left, right;
  double score;
  size_t left_characters, right_characters;
};
std::vector<Merge> DeriveMerges(const Vocabulary& v, const std::vector<double>& scores) {
  std::vector<Merge> out;
  for (size_t i = 0; i < v.tokens->size(); ++i) {
    const int64_t type = v.Type(i);
    if (type == 2 || type == 3 || type == 6) continue;
    const std::string_view piece = (*v.tokens)[i];
    std::vector<size_t> starts;
    for (size_t at = 0; at < piece.size(); at += CharacterBytes(static_cast<unsigned char>(piece[at])))
      starts.push_back(at);
    if (starts.size() > kPieceCharactersMax) continue;
    std::vector<Merge> own;
    for (size_t c = 1; c < starts.size(); ++c) {
      const std::string_view left = piece.substr(0, starts[c]), right = piece.substr(starts[c]);
      if (v.ids.contains(left) && v.ids.contains(right))
        own.push_back({left, right, scores[i], c, starts.size() - c});
    }
    std::stable_sort(own.begin(), own.end(), [&](const Merge& a, const Merge& b) {
      return std::pair(v.ids.at(a.left), v.ids.at(a.right)) < std::pair(v.ids.at(b.left), v.ids.at(b.right));
    });
    out.insert(out.end(), own.begin(), own.end());
  }
  std::stable_sort(out.begin(), out.end(), [](const Merge& a, const Merge& b) {
    return std::tie(a.score, a.left_characters, a.right_characters) >
           std::tie(b.score, b.left_characters, b.right_characters);
  });
  return out;
}

absl::StatusOr<Json> SentencePiece(const Gguf& gguf, const Vocabulary& v, const std::string& source) {
  const std::vector<double>* scores = gguf.Numbers("tokenizer.ggml.scores");
  if (scores == nullptr || scores->size() != v.tokens->size())
    return InvalidArgument(source + ": tokenizer.ggml.scores: expected one number a token");
  if (!std::all_of(scores->begin(), scores->end(), [](double s) { return std::isfinite(s); }))
    return InvalidArgument(source + ": tokenizer.ggml.scores: expected finite numbers");
  ASSIGN_OR_RETURN(const auto prefix_given, gguf.Bool("tokenizer.ggml.add_space_prefix"));
  const bool prefix = prefix_given.value_or(true);
  Json pairs = Json::array();
  for (const Merge& m : DeriveMerges(v, *scores))
    pairs.push_back(Json::array({std::string(m.left), std::string(m.right)}));
  ASSIGN_OR_RETURN(const std::string* unknown, TokenOf(gguf, v, "unknown_token_id", source));
  const std::string unknown_text = unknown != nullptr ? *unknown : "<unk>";
  const bool has_unknown = v.ids.contains(unknown_text);
  const Json blank = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  Json out;
  Json normalizers = Json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "\u2581"}});
  normalizers.push_back(blank);
  out["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  out["pre_tokenizer"] = nullptr;
  ASSIGN_OR_RETURN(out["post_processor"], PostProcessor(gguf, v, true, source));
  Json decoders =
      Json::array({Json{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
                   Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  out["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", has_unknown ? Json(unknown_text) : Json(nullptr)},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", true},
                  {"byte_fallback", true},
                  {"ignore_merges", false},
                  {"merges", pairs}};
  return out;
}

absl::StatusOr<std::string> Dump(const Json& j, const std::string& source) {
  try {
    return j.dump();
  } catch (const Json::exception& e) {  // texts that are no UTF-8
    return InvalidArgument(source + ": tokenizer metadata: " + e.what());
  }
}

// Control tokens that end an answer in the families' generation_config.json, of which metadata name one or
// two.
constexpr std::string_view kStopTexts[] = {"<|im_end|>",
                                           "<|endoftext|>",
                                           "<|end_of_text|>",
                                           "<|eot_id|>",
                                           "<|eom_id|>",
                                           "<|eot|>",
                                           "<|eom|>",
                                           "<|return|>",
                                           "<|call|>",
                                           "[EOS]",
                                           "[EOT]",
                                           "[e~[",
                                           "<\uff5cend\u2581of\u2581sentence\uff5c>"};
constexpr std::string_view kGlmStopTexts[] = {"<|user|>", "<|observation|>"};

}  // namespace

absl::StatusOr<std::string> GgufTokenizerJson(const Gguf& gguf, const std::string& source) {
  ASSIGN_OR_RETURN(const Vocabulary v, ReadVocabulary(gguf, source));
  ASSIGN_OR_RETURN(const auto model, gguf.Text("tokenizer.ggml.model"));
  Json out;
  if (model == "gpt2") {
    ASSIGN_OR_RETURN(out, ByteLevel(gguf, v, source));
  } else if (model == "llama") {
    ASSIGN_OR_RETURN(out, SentencePiece(gguf, v, source));
  } else {
    return Unimplemented(source + ": tokenizer.ggml.model: \"" + model.value_or("").substr(0, 60) +
                         "\" is not known (known: gpt2, llama); put a tokenizer.json beside the file");
  }
  out["version"] = "1.0";
  out["truncation"] = nullptr;
  out["padding"] = nullptr;
  out["added_tokens"] = AddedTokens(v);
  out["model"]["vocab"] = VocabularyJson(v);
  return Dump(out, source);
}

absl::StatusOr<std::string> GgufTokenizerConfigJson(const Gguf& gguf, const std::string& source) {
  ASSIGN_OR_RETURN(const Vocabulary v, ReadVocabulary(gguf, source));
  ASSIGN_OR_RETURN(const std::string* bos, TokenOf(gguf, v, "bos_token_id", source));
  ASSIGN_OR_RETURN(const std::string* eos, TokenOf(gguf, v, "eos_token_id", source));
  ASSIGN_OR_RETURN(const auto chat, gguf.Text("tokenizer.chat_template"));
  ASSIGN_OR_RETURN(const auto add, gguf.Bool("tokenizer.ggml.add_bos_token"));
  Json out = Json::object();
  if (bos != nullptr) out["bos_token"] = *bos;
  if (eos != nullptr) out["eos_token"] = *eos;
  if (chat) out["chat_template"] = *chat;
  if (add) out["add_bos_token"] = *add;
  return Dump(out, source);
}

absl::StatusOr<std::vector<int64_t>> GgufStopIds(const Gguf& gguf) {
  std::set<int64_t> eos;
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const auto id, gguf.Integer(key));
    if (id && *id >= 0 && *id < INT32_MAX) eos.insert(*id);
  }
  const std::vector<std::string>* tokens = gguf.Texts("tokenizer.ggml.tokens");
  const std::vector<int64_t>* types = gguf.Integers("tokenizer.ggml.token_type");
  if (tokens != nullptr && types != nullptr && types->size() == tokens->size()) {
    const auto is_control = [&](size_t i) { return (*types)[i] == 3; };
    bool glm = false;
    for (size_t i = 0; i < tokens->size(); ++i) glm = glm || (is_control(i) && (*tokens)[i] == "[gMASK]");
    const auto stops = [&](const std::string& text) {
      const auto has = [&](std::span<const std::string_view> list) {
        return std::find(list.begin(), list.end(), text) != list.end();
      };
      return has(kStopTexts) || (glm && has(kGlmStopTexts));
    };
    for (size_t i = 0; i < tokens->size(); ++i) {
      if (is_control(i) && stops((*tokens)[i])) eos.insert(static_cast<int64_t>(i));
    }
  }
  return std::vector<int64_t>(eos.begin(), eos.end());
}

}  // namespace consilium
