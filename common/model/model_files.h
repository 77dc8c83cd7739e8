// Where a model's parts lie: a folder of safetensors, a folder with one GGUF model, or a .gguf file.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

struct ModelPlace {
  std::string id;    // the folder's name, or the file's without .gguf
  std::string dir;   // absolute
  std::string gguf;  // absolute path of the (first) GGUF file; empty: safetensors
  const std::string& key() const { return gguf.empty() ? dir : gguf; }
};
// NOT_FOUND when there is nothing; INVALID_ARGUMENT when a folder has several GGUF models and no safetensors.
absl::StatusOr<ModelPlace> FindModel(const std::string& path);

// All weight files that may belong to it, absolute, sorted; no header is read.
std::vector<std::string> ListWeightFiles(const ModelPlace& place);

// The text of config.json (or params.json), or what GGUF metadata say in its spelling.
struct ConfigText {
  std::string text, source;  // source names it in messages
};
absl::StatusOr<ConfigText> ReadConfigText(const ModelPlace& place);

// What turns text into tokens and messages into text, in the form of a Hugging Face folder's files, wherever
// it comes from. Files of the folder win over GGUF metadata. Absent ones are nullopt.
struct ModelTexts {
  std::string config;  // JSON
  std::optional<std::string> generation_config, tokenizer, tokenizer_config, chat_template;
};
absl::StatusOr<ModelTexts> ReadModelTexts(const std::string& path);

}  // namespace consilium
