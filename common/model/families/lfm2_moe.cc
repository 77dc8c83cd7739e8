// LFM2-MoE (Lfm2MoeForCausalLM): short convolutions and grouped-query attention by turns, norms of each query
// and key head, first layers dense, sigmoid gate with a bias for the choice.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"lfm2_moe"};
constexpr uint32_t kTapsMax = 64;

void ReadMixers(ConfigReader& c, ModelSpec* spec) {
  SetMixers(c, c.TextList("layer_types"), "conv", Mixer::kShortConv, spec);
  spec->short_conv.taps = c.U32("conv_L_cache", 1, kTapsMax);
  spec->short_conv.bias = c.Bool("conv_bias", false);
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  c.ExpectText("hidden_act", {"silu"});
  ReadCommon(c, &spec, /*tied=*/true, "norm_eps");
  // Releases write the first key, which wins in the class.
  spec.tied_embeddings = c.Bool("tie_embedding", spec.tied_embeddings);
  ReadLayers(c, &spec);
  ReadMixers(c, &spec);
  ReadHeads(c, &spec);
  spec.gqa.qk_norm = QkNorm::kHead;
  ReadExperts(c, &spec, {"num_experts"});
  spec.gate.score = kernels::GateSpec::Score::kSigmoid;
  spec.gate.has_bias = c.Bool("use_expert_bias", true);
  spec.gate.renormalize = c.Bool("norm_topk_prob", true);
  spec.gate.renormalize_epsilon = 1e-6f;
  spec.gate.scale = static_cast<float>(c.Number("routed_scaling_factor", 1e-6, 1e6, 1.0));
  spec.expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  const uint32_t dense = c.U32("num_dense_layers", 0, kLayersMax);
  for (uint32_t i = 0; i < dense && i < spec.layers.size(); ++i) {
    spec.layers[i].ffn = FfnKind::kDense;
    spec.layers[i].dense_inter = c.U32("intermediate_size", 1, kHiddenMax);
  }
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.norm = "embedding_norm.weight";
  names.input_norm = "operator_norm";
  names.post_norm = "ffn_norm";
  names.q_norm = "q_layernorm";
  names.k_norm = "k_layernorm";
  names.o = "out_proj";
  names.dense = "feed_forward.";
  names.mlp = kW132;
  names.gate = "feed_forward.gate.weight";
  names.gate_bias = "feed_forward.expert_bias";
  names.experts = "feed_forward.experts.";
  names.expert = kW132;
  out->AddModel(names);
}

}  // namespace

extern const Family kLfm2Moe;
const Family kLfm2Moe{"lfm2_moe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
