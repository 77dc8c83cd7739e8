#include "common/model/families/family.h"

namespace consilium {
namespace {
constexpr const Family* kFamilies[] = {&kDeepseekV3, &kMixtral};
}  // namespace

std::span<const Family* const> Families() { return kFamilies; }

const Family* FindFamily(std::string_view model_type) {
  for (const Family* family : kFamilies) {
    for (std::string_view type : family->model_types) {
      if (type == model_type) return family;
    }
  }
  return nullptr;
}

std::string LayerRole(uint32_t layer, std::string_view suffix) {
  return "layers." + std::to_string(layer) + "." + std::string(suffix);
}

void RoleList::Add(ModelPart part, std::string role, std::string name, std::vector<uint64_t> shape) {
  TensorRole r;
  r.part = part;
  r.role = std::move(role);
  r.name = std::move(name);
  r.shape = std::move(shape);
  roles.push_back(std::move(r));
}

void RoleList::AddEnds() {
  Add(ModelPart::kEmbedding, "embed", "model.embed_tokens.weight", {spec_.vocab, spec_.hidden});
  Add(ModelPart::kNorm, "final_norm", "model.norm.weight", {spec_.hidden});
  if (!spec_.tied_embeddings) Add(ModelPart::kHead, "head", "lm_head.weight", {spec_.vocab, spec_.hidden});
}

void RoleList::AddBlockNorms(uint32_t layer, const std::string& prefix) {
  Add(ModelPart::kNorm, LayerRole(layer, "input_norm"), prefix + "input_layernorm.weight", {spec_.hidden});
  Add(ModelPart::kNorm, LayerRole(layer, "post_norm"), prefix + "post_attention_layernorm.weight",
      {spec_.hidden});
}

void RoleList::AddAttention(uint32_t layer, const std::string& prefix) {
  const auto add = [&](std::string_view suffix, const std::string& name, std::vector<uint64_t> shape) {
    Add(ModelPart::kAttention, LayerRole(layer, suffix), prefix + name, std::move(shape));
  };
  const uint64_t hidden = spec_.hidden;
  if (spec_.mla_attention) {
    const MlaSpec& m = spec_.mla;
    const uint64_t q_width = uint64_t{m.heads} * (m.nope + m.rope);
    if (m.q_lora == 0) {
      add("q", "q_proj.weight", {q_width, hidden});
    } else {
      add("q_a", "q_a_proj.weight", {m.q_lora, hidden});
      add("q_a_norm", "q_a_layernorm.weight", {m.q_lora});
      add("q_b", "q_b_proj.weight", {q_width, m.q_lora});
    }
    add("kv_a", "kv_a_proj_with_mqa.weight", {uint64_t{m.kv_lora} + m.rope, hidden});
    add("kv_a_norm", "kv_a_layernorm.weight", {m.kv_lora});
    add("kv_b", "kv_b_proj.weight", {uint64_t{m.heads} * (m.nope + m.v_dim), m.kv_lora});
    add("o", "o_proj.weight", {hidden, uint64_t{m.heads} * m.v_dim});
    return;
  }
  const GqaSpec& g = spec_.gqa;
  const uint64_t q_width = uint64_t{g.q_heads} * g.head_dim, kv_width = uint64_t{g.kv_heads} * g.head_dim;
  add("q", "q_proj.weight", {q_width, hidden});
  add("k", "k_proj.weight", {kv_width, hidden});
  add("v", "v_proj.weight", {kv_width, hidden});
  add("o", "o_proj.weight", {hidden, q_width});
  if (g.qkv_bias) {
    add("q_bias", "q_proj.bias", {q_width});
    add("k_bias", "k_proj.bias", {kv_width});
    add("v_bias", "v_proj.bias", {kv_width});
  }
  if (g.o_bias) add("o_bias", "o_proj.bias", {hidden});
}

void RoleList::AddMlp(ModelPart part, uint32_t layer, const std::string& group, const std::string& prefix,
                      uint32_t inter, std::span<const std::string_view, 3> names) {
  constexpr std::string_view kRoles[3] = {".gate", ".up", ".down"};
  for (int i = 0; i < 3; ++i) {
    const uint64_t rows = i == 2 ? spec_.hidden : inter, columns = i == 2 ? inter : spec_.hidden;
    Add(part, LayerRole(layer, group + std::string(kRoles[i])), prefix + std::string(names[i]) + ".weight",
        {rows, columns});
  }
}

void RoleList::AddExperts(uint32_t layer, const std::string& prefix,
                          std::span<const std::string_view, 3> names) {
  for (uint32_t e = 0; e < spec_.gate.experts; ++e) {
    for (int i = 0; i < 3; ++i) {
      TensorRole r;
      r.part = ModelPart::kExperts;
      r.name = prefix + std::to_string(e) + "." + std::string(names[i]) + ".weight";
      r.shape = {spec_.expert_inter, spec_.hidden};
      if (i == 2) r.shape = {spec_.hidden, spec_.expert_inter};
      r.layer = LayerId(static_cast<uint16_t>(layer));
      r.expert = ExpertId(static_cast<uint16_t>(e));
      r.expert_part = static_cast<ExpertPart>(i);
      roles.push_back(std::move(r));
    }
  }
}

void ReadCommon(ConfigReader& config, ModelSpec* spec) {
  spec->hidden = config.U32("hidden_size", 1, kHiddenMax);
  spec->vocab = config.U32("vocab_size", 1, 1 << 24);
  spec->context = config.U32("max_position_embeddings", 1, 1 << 26);
  spec->norm_eps = static_cast<float>(config.Number("rms_norm_eps", 1e-30, 1));
  spec->tied_embeddings = config.Bool("tie_word_embeddings", false);
  config.ExpectText("hidden_act", {"silu", "gelu_pytorch_tanh"});
  if (config.Text("hidden_act", "silu") == "gelu_pytorch_tanh")
    spec->activation = kernels::Activation::kGeluTanh;
  if (auto quantised = config.Object("quantization_config")) {
    config.Unsupported("quantization_config",
                       "quantised storage (" + quantised->Text("quant_method", "unnamed method") +
                           ") is not supported; supported: F32, F16 and BF16 safetensors");
  }
}

}  // namespace consilium
