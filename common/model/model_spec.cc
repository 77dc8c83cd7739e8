#include "common/model/model_spec.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/model/config_reader.h"
#include "common/model/families/family.h"
#include "common/model/files.h"

namespace consilium {
namespace {

constexpr size_t kConfigBytesMax = size_t{16} << 20;

absl::Status CheckSizes(const ModelSpec& spec, const std::string& source) {
  const uint64_t experts = uint64_t{spec.moe_layers()} * spec.gate.experts;
  if (experts > kRoutedExpertsMax) {
    return InvalidArgument(source + ": " + std::to_string(experts) +
                           " routed experts over all layers; expected at most " +
                           std::to_string(kRoutedExpertsMax));
  }
  return absl::OkStatus();
}

absl::Status AddStopIds(ConfigReader& config, ModelSpec* spec) {
  for (uint32_t id : config.U32List("eos_token_id", spec->vocab - 1)) spec->eos_ids.push_back(id);
  return config.status();
}

}  // namespace

kernels::AttentionShape ModelSpec::attention_shape() const {
  kernels::AttentionShape shape;
  if (mla_attention) {
    shape.q_heads = mla.heads;
    shape.kv_heads = 1;
    shape.k_dim = mla.kv_lora + mla.rope;
    shape.v_dim = mla.kv_lora;
    shape.scale = mla.scale;
  } else {
    shape.q_heads = gqa.q_heads;
    shape.kv_heads = gqa.kv_heads;
    shape.k_dim = shape.v_dim = gqa.head_dim;
    shape.scale = gqa.scale;
    shape.window = gqa.window;
  }
  return shape;
}

uint32_t ModelSpec::moe_layers() const {
  return static_cast<uint32_t>(
      std::count_if(layers.begin(), layers.end(), [](const LayerSpec& l) { return l.ffn == FfnKind::kMoe; }));
}

absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_text, const std::string& source) {
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(config_text, source));
  const std::string type = config.Text("model_type");
  RETURN_IF_ERROR(config.status());
  const Family* family = FindFamily(type);
  if (family == nullptr) {
    std::string known;
    for (const Family* f : Families()) {
      for (std::string_view t : f->model_types) known += (known.empty() ? "" : ", ") + std::string(t);
    }
    return Unimplemented(source + ": model_type \"" + type.substr(0, 60) +
                         "\" is not a known family; known: " + known);
  }
  ModelSpec spec = family->read(config);
  RETURN_IF_ERROR(config.status());
  spec.family = family->name;
  RETURN_IF_ERROR(CheckSizes(spec, source));
  RETURN_IF_ERROR(AddStopIds(config, &spec));
  return spec;
}

absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& dir) {
  const std::string path = dir + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kConfigBytesMax));
  ASSIGN_OR_RETURN(ModelSpec spec, ParseModelSpec(text, path));
  const std::string generation_path = dir + "/generation_config.json";
  if (FileExists(generation_path)) {
    ASSIGN_OR_RETURN(const std::string generation_text, ReadTextFile(generation_path, kConfigBytesMax));
    ASSIGN_OR_RETURN(ConfigReader generation, ConfigReader::Parse(generation_text, generation_path));
    RETURN_IF_ERROR(AddStopIds(generation, &spec));
  }
  std::sort(spec.eos_ids.begin(), spec.eos_ids.end());
  spec.eos_ids.erase(std::unique(spec.eos_ids.begin(), spec.eos_ids.end()), spec.eos_ids.end());
  return spec;
}

}  // namespace consilium
