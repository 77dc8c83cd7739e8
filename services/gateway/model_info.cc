// What the gateway takes from a Hugging Face folder.
#include <fstream>
#include <sstream>

#include "common/base/status.h"
#include "services/gateway/api.h"
#include "services/gateway/json_in.h"

namespace consilium::gateway {
namespace {

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

// {} if the file is not there; INVALID_ARGUMENT if it is no JSON object.
absl::StatusOr<Json> ReadJson(const std::string& path) {
  const auto text = ReadFile(path);
  if (!text) return Json::object();
  Json out = Json::parse(*text, nullptr, false);
  if (!out.is_object()) return InvalidArgument(path + ": expected a JSON object");
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
std::string TemplateSource(const std::string& dir, const Json& config) {
  if (auto text = ReadFile(dir + "/chat_template.jinja")) return *text;
  const auto it = config.find("chat_template");
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return "";
  for (const Json& entry : *it) {
    if (TokenName(entry, "name") == "default") return TokenName(entry, "template");
  }
  return "";
}

}  // namespace

absl::StatusOr<ModelInfo> LoadModelInfo(const std::string& dir, const std::string& name) {
  ModelInfo out;
  out.name = name;
  const std::string path = dir + "/tokenizer.json";
  const auto text = ReadFile(path);
  if (!text)
    return NotFound("model " + dir + ": cannot read tokenizer.json (expected a Hugging Face folder)");
  auto tokenizer = Tokenizer::FromJson(*text);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "model " + dir);
  out.tokenizer = *std::move(tokenizer);
  for (size_t id = 0; id < out.tokenizer->vocab_size(); ++id)
    out.token_bytes_max =
        std::max(out.token_bytes_max, out.tokenizer->TokenBytes(static_cast<TokenId>(id)).size());

  ASSIGN_OR_RETURN(const Json config, ReadJson(dir + "/config.json"));
  ASSIGN_OR_RETURN(const Json generation, ReadJson(dir + "/generation_config.json"));
  ASSIGN_OR_RETURN(const Json tokens, ReadJson(dir + "/tokenizer_config.json"));
  AddIds(generation, &out.stop_ids);
  AddIds(config, &out.stop_ids);
  out.bos_token = TokenName(tokens, "bos_token");
  out.eos_token = TokenName(tokens, "eos_token");
  if (const auto it = config.find("max_position_embeddings"); it != config.end()) {
    const auto x = Fields::AsInt(*it);
    if (x && *x > 0 && *x < (int64_t{1} << 31)) out.context_tokens = static_cast<uint32_t>(*x);
  }
  if (const std::string source = TemplateSource(dir, tokens); !source.empty()) {
    auto chat = ChatTemplate::FromSource(source);
    if (!chat.ok()) return Annotate(chat.status(), "model " + dir);
    out.chat_template = *std::move(chat);
  }
  return out;
}

}  // namespace consilium::gateway
