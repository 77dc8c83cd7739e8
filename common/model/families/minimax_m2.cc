// MiniMax-M2 (MiniMaxM2ForCausalLM): norms over whole projections, part of each head rotated, sigmoid gate
// with correction bias, always renormalised.
#include "common/model/families/reads.h"
#include "common/model/rope.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"minimax_m2"};

// Releases carry keys of the family before, whose layers may be linear and whose residuals are scaled.
void ExpectPlainLayers(ConfigReader& c) {
  for (uint32_t type : c.U32List("attn_type_list", 1)) {
    if (type != 1) c.Unsupported("attn_type_list", "layers of linear attention (0) are not implemented");
  }
  for (const char* key : {"layernorm_full_attention_beta", "layernorm_linear_attention_beta",
                          "layernorm_mlp_beta", "layernorm_full_attention_alpha", "layernorm_mlp_alpha"}) {
    if (c.Number(key, -1e6, 1e6, 1.0) != 1.0) c.Unsupported(key, "scaled residuals are not implemented");
  }
  c.ExpectBool("postnorm", false, "norms after the residual are not implemented");
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  ExpectPlainLayers(c);
  const uint32_t window = ReadWindow(c);
  for (LayerSpec& layer : spec.layers) layer.window = window;
  if (c.Bool("use_qk_norm", true)) spec.gqa.qk_norm = QkNorm::kProjection;
  c.ExpectText("qk_norm_type", {"per_layer"});
  c.ExpectBool("use_routing_bias", true, "a gate without correction bias is not implemented");
  if (c.U32("shared_intermediate_size", 0, kHiddenMax, 0) != 0)
    c.Unsupported("shared_intermediate_size", "a shared expert is not implemented in this family");
  c.ExpectBool("attention_bias", false, "this family has no biases");
  ReadExperts(c, &spec, {"num_local_experts", "num_experts"});
  c.ExpectText("scoring_func", {"sigmoid"});
  spec.gate.score = kernels::GateSpec::Score::kSigmoid;
  spec.gate.has_bias = true;
  spec.gate.renormalize = true;
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  if (c.Has("rotary_dim") && c.ok()) {
    const uint32_t dims = c.U32("rotary_dim", 2, spec.gqa.head_dim);
    if (dims % 2 != 0) c.Fail("rotary_dim", "expected an even number, got " + std::to_string(dims));
    if (c.ok()) spec.rope = ReadRope(c, dims, /*interleaved=*/false, spec.context).rope;
  } else {
    ReadGqaRope(c, &spec, /*partial=*/true);
  }
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.gate = "block_sparse_moe.gate.weight";
  names.gate_bias = "block_sparse_moe.e_score_correction_bias";
  names.experts = "block_sparse_moe.experts.";
  names.expert = kW132;
  out->AddModel(names);
}

}  // namespace

extern const Family kMinimaxM2;
const Family kMinimaxM2{"minimax_m2", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
