// Mixtral (MixtralForCausalLM): grouped-query attention, softmax over all experts, top-k renormalised.
#include <cmath>

#include "common/model/families/family.h"
#include "common/model/rope.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"mixtral"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadCommon(c, &spec);
  const uint32_t layers = c.U32("num_hidden_layers", 1, kLayersMax);
  GqaSpec& g = spec.gqa;
  g.q_heads = c.U32("num_attention_heads", 1, kHeadsMax);
  g.kv_heads = c.U32("num_key_value_heads", 1, kHeadsMax);
  if (c.ok() && g.q_heads % g.kv_heads != 0) {
    c.Fail("num_key_value_heads", "expected a divisor of num_attention_heads " + std::to_string(g.q_heads) +
                                      ", got " + std::to_string(g.kv_heads));
  }
  if (c.ok() && !c.Has("head_dim") && spec.hidden % g.q_heads != 0) {
    c.Fail("head_dim", "missing, and hidden_size " + std::to_string(spec.hidden) +
                           " is not a multiple of num_attention_heads " + std::to_string(g.q_heads));
  }
  g.head_dim = c.U32("head_dim", 2, kHeadDimMax, spec.hidden / g.q_heads);
  if (c.ok() && (g.head_dim < 2 || g.head_dim % 2 != 0))
    c.Fail("head_dim", "expected an even number, got " + std::to_string(g.head_dim));
  g.scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
  g.window = c.U32("sliding_window", 1, 1 << 26, 0);
  c.ExpectBool("attention_bias", false, "this family has no biases");

  spec.gate.experts = c.U32("num_local_experts", 1, kExpertsMax);
  spec.gate.top_k = c.U32("num_experts_per_tok", 1, kExpertsMax);
  if (c.ok() && spec.gate.top_k > spec.gate.experts) {
    c.Fail("num_experts_per_tok", "expected at most num_local_experts " + std::to_string(spec.gate.experts) +
                                      ", got " + std::to_string(spec.gate.top_k));
  }
  spec.gate.score = kernels::GateSpec::Score::kSoftmax;
  spec.gate.renormalize = true;
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  spec.layers.assign(layers, LayerSpec{FfnKind::kMoe, 0, 0});
  if (c.ok()) spec.rope = ReadRope(c, g.head_dim, /*interleaved=*/false, spec.context).rope;
  return spec;
}

void List(const ModelSpec& spec, RoleList* out) {
  constexpr std::string_view kNames[3] = {"w1", "w3", "w2"};
  out->AddEnds();
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    out->AddBlockNorms(i, prefix);
    out->AddAttention(i, prefix + "self_attn.");
    out->Add(ModelPart::kGate, LayerRole(i, "gate"), prefix + "block_sparse_moe.gate.weight",
             {spec.gate.experts, spec.hidden});
    out->AddExperts(i, prefix + "block_sparse_moe.experts.", kNames);
  }
}

bool Ignored(const ModelSpec& spec, std::string_view tensor) {
  return tensor.ends_with("rotary_emb.inv_freq") || (spec.tied_embeddings && tensor == "lm_head.weight");
}

}  // namespace

const Family kMixtral{"mixtral", kTypes, Read, List, Ignored};

}  // namespace consilium
