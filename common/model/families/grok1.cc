// Grok-1 (xai-org/grok-1, in Hugging Face ports' layout): sandwich norms, soft-capped scores, multipliers of
// embeddings and logits, GELU experts, softmax weights as they are.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"grok-1"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  spec.activation = kernels::Activation::kGeluTanh;
  ReadCommon(c, &spec, /*tied=*/true);
  if (c.Has("hidden_act")) c.ExpectText("hidden_act", {"gelu_pytorch_tanh"});
  ReadLayers(c, &spec);
  ReadHeads(c, &spec);
  spec.post_norms = true;
  spec.gqa.scale = static_cast<float>(c.Number("attn_output_multiplier", 1e-9, 1e9));
  spec.gqa.soft_cap = static_cast<float>(c.Number("max_attn_value", 0, 1e9, 30.0));
  spec.embed_scale = static_cast<float>(c.Number("embedding_multiplier_scale", 1e-9, 1e9));
  spec.logit_scale = static_cast<float>(c.Number("output_multiplier_scale", 1e-9, 1e9));
  ReadExperts(c, &spec, {"num_experts"});
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec& spec, RoleList* out) {
  FileNames names;
  if (out->Has("model.norm.scale")) names.norm_weight = ".scale";
  names.input_norm = "pre_attn_norm";
  names.post_norm = "pre_moe_norm";
  out->AddEnds(names);
  constexpr std::string_view kExpert[3] = {"linear", "linear_v", "linear_1"};
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".", moe = prefix + "moe_block.";
    out->AddBlockNorms(i, prefix, names);
    out->AddNorm(LayerRole(i, "attention_out_norm"), prefix + "post_attn_norm", spec.hidden, names);
    out->AddNorm(LayerRole(i, "ffn_out_norm"), prefix + "post_moe_norm", spec.hidden, names);
    out->AddAttention(i, prefix + "attn.", names);
    out->Add(ModelPart::kGate, LayerRole(i, "gate"), moe + "gate.weight", {spec.gate.experts, spec.hidden});
    out->AddExperts(i, moe + "experts.", kExpert);
  }
}

}  // namespace

extern const Family kGrok1;
const Family kGrok1{"grok1", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
