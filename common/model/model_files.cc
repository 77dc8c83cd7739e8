#include "common/model/model_files.h"

#include <algorithm>
#include <filesystem>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/gguf_model.h"
#include "common/model/gguf_tokenizer.h"
#include "common/model/model_spec.h"

namespace consilium {
namespace {

constexpr size_t kConfigBytesMax = size_t{16} << 20;
constexpr size_t kTokenizerBytesMax = size_t{512} << 20;

bool IsFirstPart(const std::string& name) {
  return name.find("-of-") == std::string::npos || name.find("-00001-of-") != std::string::npos;
}

std::vector<std::string> FilesEndingWith(const std::string& dir, std::string_view suffix) {
  std::vector<std::string> out;
  std::error_code error;
  for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    if (it->path().native().ends_with(suffix)) out.push_back(it->path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// The file's text, or nullopt when there is none.
absl::StatusOr<std::optional<std::string>> Optional(const std::string& path, size_t bytes_max) {
  if (!FileExists(path)) return std::optional<std::string>();
  ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, bytes_max));
  return std::optional<std::string>(std::move(text));
}

}  // namespace

absl::StatusOr<ModelPlace> FindModel(const std::string& path) {
  std::string full = std::filesystem::absolute(path).lexically_normal().string();
  while (full.size() > 1 && full.ends_with('/')) full.pop_back();
  const std::filesystem::path p(full);
  ModelPlace out;
  if (std::filesystem::is_regular_file(p)) {
    if (p.extension() != ".gguf") return InvalidArgument(full + ": expected a folder or a .gguf file");
    out.id = p.stem();
    out.dir = p.parent_path();
    out.gguf = full;
    return out;
  }
  if (!std::filesystem::is_directory(p)) return NotFound(full + ": no such folder");
  out.id = p.filename();
  out.dir = full;
  for (const char* suffix : {".safetensors", ".safetensors.index.json"}) {
    for (const std::string& file : FilesEndingWith(full, suffix)) {
      const std::string name = std::filesystem::path(file).filename();
      if (name.starts_with("model") || name.starts_with("consolidated")) return out;
    }
  }
  std::vector<std::string> models;
  for (const std::string& file : FilesEndingWith(full, ".gguf")) {
    if (IsFirstPart(std::filesystem::path(file).filename())) models.push_back(file);
  }
  if (models.size() > 1)
    return InvalidArgument(full + ": " + std::to_string(models.size()) +
                           " GGUF models; give the path of one, such as " + models[0]);
  if (models.size() == 1) out.gguf = models[0];
  return out;
}

std::vector<std::string> ListWeightFiles(const ModelPlace& place) {
  if (place.gguf.empty()) return FilesEndingWith(place.dir, ".safetensors");
  const size_t part = place.gguf.rfind("-00001-of-");
  if (part == std::string::npos) return {place.gguf};
  std::vector<std::string> out;
  for (const std::string& file : FilesEndingWith(place.dir, place.gguf.substr(part + 6))) {
    if (file.compare(0, part, place.gguf, 0, part) == 0) out.push_back(file);
  }
  return out;
}

absl::StatusOr<ConfigText> ReadConfigText(const ModelPlace& place) {
  if (place.gguf.empty()) {
    const std::string path = ModelConfigPath(place.dir);
    ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, kConfigBytesMax));
    return ConfigText{std::move(text), path};
  }
  ASSIGN_OR_RETURN(const GgufFiles read, ReadGgufFiles(place.gguf));
  ASSIGN_OR_RETURN(std::string text, GgufConfigJson(read.gguf, place.gguf));
  return ConfigText{std::move(text), place.gguf};
}

absl::StatusOr<ModelTexts> ReadModelTexts(const std::string& path) {
  ASSIGN_OR_RETURN(const ModelPlace place, FindModel(path));
  ModelTexts out;
  ASSIGN_OR_RETURN(out.generation_config, Optional(place.dir + "/generation_config.json", kConfigBytesMax));
  ASSIGN_OR_RETURN(out.tokenizer, Optional(place.dir + "/tokenizer.json", kTokenizerBytesMax));
  ASSIGN_OR_RETURN(out.tokenizer_config, Optional(place.dir + "/tokenizer_config.json", kConfigBytesMax));
  ASSIGN_OR_RETURN(out.chat_template, Optional(place.dir + "/chat_template.jinja", kConfigBytesMax));
  if (place.gguf.empty()) {
    const std::string config = ModelConfigPath(place.dir);
    out.config = "{}";
    if (FileExists(config)) {
      ASSIGN_OR_RETURN(out.config, ReadTextFile(config, kConfigBytesMax));
    }
    return out;
  }
  ASSIGN_OR_RETURN(const GgufFiles read, ReadGgufFiles(place.gguf));
  const Gguf& gguf = read.gguf;
  ASSIGN_OR_RETURN(out.config, GgufConfigJson(gguf, place.gguf));
  if (!out.tokenizer) {
    ASSIGN_OR_RETURN(out.tokenizer, GgufTokenizerJson(gguf, place.gguf));
  }
  if (!out.tokenizer_config) {
    ASSIGN_OR_RETURN(out.tokenizer_config, GgufTokenizerConfigJson(gguf, place.gguf));
  }
  return out;
}

}  // namespace consilium
