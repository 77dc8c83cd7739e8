#include "common/model/model_spec.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/model/config_reader.h"
#include "common/model/families/family.h"
#include "common/model/files.h"
#include "common/model/model_files.h"
#include "common/model/quant_storage.h"

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

std::string ModelConfigPath(const std::string& dir) {
  const std::string config = dir + "/config.json", native = dir + "/params.json";
  return !FileExists(config) && FileExists(native) ? native : config;
}

kernels::AttentionShape ModelSpec::attention_shape(uint32_t layer) const {
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
    shape.soft_cap = gqa.soft_cap;
  }
  if (layer < layers.size()) {
    shape.window = layers[layer].window;
    shape.chunk = layers[layer].chunk;
  }
  return shape;
}

ModelSpec::KvPageFloats ModelSpec::kv_page_floats(uint32_t layer) const {
  if (layers[layer].mixer != Mixer::kAttention) return {};
  const kernels::AttentionShape shape = attention_shape(layer);
  return {shape.page_k_floats(), shape.page_v_floats()};
}

uint64_t ModelSpec::kv_page_bytes() const {
  uint64_t floats = 0;
  for (uint32_t i = 0; i < layers.size(); ++i) floats += kv_page_floats(i).all();
  return floats * sizeof(float);
}

size_t DeltaNetSpec::head_state_floats() const {
  kernels::DeltaRule head;
  head.k_dim = k_dim;
  head.v_dim = v_dim;
  return head.state_floats();
}

size_t ModelSpec::state_floats(uint32_t layer) const {
  if (layers[layer].mixer == Mixer::kAttention) return 0;
  if (layers[layer].mixer == Mixer::kShortConv) return size_t{short_conv.taps - 1} * hidden;
  return size_t{delta_net.taps - 1} * delta_net.channels() +
         delta_net.v_heads * delta_net.head_state_floats();
}

uint64_t ModelSpec::state_bytes() const {
  uint64_t floats = 0;
  for (uint32_t i = 0; i < layers.size(); ++i) floats += state_floats(i);
  return floats * sizeof(float);
}

uint32_t ModelSpec::moe_layers() const {
  return static_cast<uint32_t>(
      std::count_if(layers.begin(), layers.end(), [](const LayerSpec& l) { return l.ffn == FfnKind::kMoe; }));
}

absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_text, const std::string& source,
                                         std::vector<std::string>* unread) {
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(config_text, source));
  // Mistral's own params.json has no type.
  const bool native = source.ends_with("params.json");
  const std::string type = native ? "mistral_large_3" : config.Text("model_type");
  RETURN_IF_ERROR(config.status());
  const Family* family = FindFamily(type);
  // A model of text and pictures: a text model of a known family, wrapped.
  std::optional<ConfigReader> text_part = config.Object("text_config");
  ConfigReader* own = &config;
  if (family == nullptr && text_part && text_part->Has("model_type")) {
    family = FindFamily(text_part->Text("model_type"));
    own = &*text_part;
  }
  if (family == nullptr) {
    std::string known;
    for (const Family* f : Families()) {
      if (f->name == "recurrent") continue;  // known, and refused
      for (std::string_view t : f->model_types) known += (known.empty() ? "" : ", ") + std::string(t);
    }
    return Unimplemented(source + ": model_type \"" + type.substr(0, 60) +
                         "\" is not a known family; known: " + known);
  }
  ModelSpec spec = family->read(*own);
  const bool tied = config.Bool("tie_word_embeddings", spec.tied_embeddings);
  if (text_part && !text_part->Has("tie_word_embeddings")) spec.tied_embeddings = tied;
  RETURN_IF_ERROR(config.status());
  spec.family = family->name;
  RETURN_IF_ERROR(CheckSizes(spec, source));
  RETURN_IF_ERROR(AddStopIds(config, &spec));
  if (text_part) RETURN_IF_ERROR(AddStopIds(*text_part, &spec));
  RETURN_IF_ERROR(ParseQuantConfig(config_text, source).status());  // unsupported storage is refused here too
  if (unread != nullptr) {
    // Read above, not through these readers.
    for (const char* key : {"quantization_config", "quantization"}) {
      (void)config.Has(key);
      (void)own->Has(key);
    }
    *unread = config.Unread();
  }
  return spec;
}

absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& dir) {
  ASSIGN_OR_RETURN(const ModelPlace place, FindModel(dir));
  ASSIGN_OR_RETURN(const ConfigText config, ReadConfigText(place));
  ASSIGN_OR_RETURN(ModelSpec spec, ParseModelSpec(config.text, config.source));
  const std::string generation_path = place.dir + "/generation_config.json";
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
