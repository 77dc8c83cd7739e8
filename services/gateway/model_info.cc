// What the gateway takes from a Hugging Face folder or a GGUF file.
#include <fstream>

#include "common/base/status.h"
#include "common/model/model_files.h"
#include "services/gateway/api.h"
#include "services/gateway/json_in.h"

namespace consilium::gateway {
namespace {

// {} for a file that is not there; INVALID_ARGUMENT if it is no JSON object.
absl::StatusOr<Json> ParseObject(const std::optional<std::string>& text, const std::string& name) {
  if (!text) return Json::object();
  Json out = Json::parse(*text, nullptr, false);
  if (!out.is_object()) return InvalidArgument(name + ": expected a JSON object");
  return out;
}

// "bos_token": a string, or an object with "content".
std::string TokenName(const Json& config, const char* key) {
  if (!config.is_object()) return "";
  const auto it = config.find(key);
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  return it->is_object() && it->contains("content") && (*it)["content"].is_string()
             ? (*it)["content"].get<std::string>()
             : "";
}

void AddIds(const Json& config, std::vector<TokenId>* out) {
  const auto it = config.find("eos_token_id");
  if (it == config.end()) return;
  for (const Json& id : it->is_array() ? *it : Json::array({*it})) {
    const auto x = Fields::AsInt(id);
    if (x && *x >= 0 && std::find(out->begin(), out->end(), static_cast<TokenId>(*x)) == out->end())
      out->push_back(static_cast<TokenId>(*x));
  }
}

// chat_template.jinja, else tokenizer_config.json's: a string, or a list of {name, template} with one named
// "default".
std::string TemplateSource(const ModelTexts& texts, const Json& config) {
  if (texts.chat_template) return *texts.chat_template;
  const auto it = config.find("chat_template");
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return "";
  for (const Json& entry : *it) {
    if (TokenName(entry, "name") == "default") return TokenName(entry, "template");
  }
  return "";
}

// What the folder has instead of tokenizer.json, and what to do.
std::string WhyNoTokenizer(const std::string& dir) {
  struct Other {
    const char *file, *kind, *how;
  };
  static constexpr Other kOthers[] = {
      {"tokenizer.model", "a SentencePiece tokenizer",
       "python -c \"from transformers import AutoTokenizer as T; "
       "T.from_pretrained('DIR', use_fast=True).save_pretrained('DIR')\""},
      {"tekken.json", "Mistral's tekken tokenizer",
       "take tokenizer.json of the same model from the hub's transformers version"},
      {"tiktoken.model", "a tiktoken tokenizer",
       "python -c \"from transformers.integrations.tiktoken import convert_tiktoken_to_fast as c; "
       "import tiktoken; c(tiktoken.get_encoding(NAME), 'DIR')\", or tokenizer.json of the same model from "
       "the hub"}};
  for (const Other& other : kOthers) {
    if (std::ifstream(dir + "/" + other.file).good())
      return std::string("tokenizer.json is missing: the folder has only ") + other.kind + " (" + other.file +
             "), which is not read. Make tokenizer.json once: " + other.how;
  }
  return "cannot read tokenizer.json (expected a Hugging Face folder)";
}

}  // namespace

absl::StatusOr<ModelInfo> LoadModelInfo(const std::string& dir, const std::string& name,
                                        const ParserNames& parsers) {
  ModelInfo out;
  out.name = name;
  const auto texts = ReadModelTexts(dir);  // dir may name a .gguf file as well
  if (!texts.ok() && texts.status().code() != absl::StatusCode::kNotFound)
    return Annotate(texts.status(), "model " + dir);
  if (!texts.ok() || !texts->tokenizer) return NotFound("model " + dir + ": " + WhyNoTokenizer(dir));
  auto tokenizer = Tokenizer::FromJson(*texts->tokenizer);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "model " + dir);
  out.tokenizer = *std::move(tokenizer);
  for (size_t id = 0; id < out.tokenizer->vocab_size(); ++id)
    out.token_bytes_max =
        std::max(out.token_bytes_max, out.tokenizer->TokenBytes(static_cast<TokenId>(id)).size());

  ASSIGN_OR_RETURN(const Json config, ParseObject(texts->config, dir + "/config.json"));
  ASSIGN_OR_RETURN(const Json generation,
                   ParseObject(texts->generation_config, dir + "/generation_config.json"));
  ASSIGN_OR_RETURN(const Json tokens, ParseObject(texts->tokenizer_config, dir + "/tokenizer_config.json"));
  AddIds(generation, &out.stop_ids);
  AddIds(config, &out.stop_ids);
  out.bos_token = TokenName(tokens, "bos_token");
  out.eos_token = TokenName(tokens, "eos_token");
  if (const auto it = config.find("max_position_embeddings"); it != config.end()) {
    const auto x = Fields::AsInt(*it);
    if (x && *x > 0 && *x < (int64_t{1} << 31)) out.context_tokens = static_cast<uint32_t>(*x);
  }
  const std::string source = TemplateSource(*texts, tokens);
  ASSIGN_OR_RETURN(OutputFormat format, ChooseFormat(parsers.tools, parsers.reasoning, source,
                                                     TokenName(config, "model_type"), *out.tokenizer));
  out.format = std::make_shared<const OutputFormat>(std::move(format));
  out.reasoning_effort = source.find("reasoning_effort") != std::string::npos;
  if (!source.empty()) {
    auto chat = ChatTemplate::FromSource(source);
    if (!chat.ok()) return Annotate(chat.status(), "model " + dir);
    out.chat_template = *std::move(chat);
  }
  return out;
}

}  // namespace consilium::gateway
