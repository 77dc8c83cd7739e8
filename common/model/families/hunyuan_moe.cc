// Hunyuan-MoE (HunYuanMoEV1ForCausalLM): norms of queries and keys after rotation, an f32 router, a shared
// MLP as wide as num_shared_expert experts.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"hunyuan_v1_moe", "hunyuan"};  // the second: the vendor's own code

// The number in a value that releases write as a list of one per layer; layers that differ are refused.
uint32_t Uniform(ConfigReader& c, std::string_view key, uint32_t max, uint32_t fallback) {
  const std::vector<uint32_t> values = c.U32List(key, max);
  for (uint32_t v : values) {
    if (v != values[0]) c.Unsupported(key, "values that differ from layer to layer are not supported");
  }
  return values.empty() ? fallback : values[0];
}

// What the vendor's older models do and this class does not.
void ExpectThisClass(ConfigReader& c) {
  c.ExpectBool("use_cla", false, "sharing keys across layers is not implemented");
  c.ExpectBool("use_mla", false, "latent attention is not implemented in this family");
  c.ExpectBool("mlp_bias", false, "biases of MLPs are not implemented");
  c.ExpectBool("group_limited_greedy", false, "groups of experts are not implemented in this family");
  c.ExpectBool("position_embedding_xdrope", false, "xdrope is not implemented");
  c.ExpectBool("use_rotary_pos_emb", true, "this family rotates");
  c.ExpectBool("norm_topk_prob", true, "this family divides the weights by their sum");
  c.ExpectText("norm_type", {"rms"});
  if (c.Number("routed_scaling_factor", -1e6, 1e6, 1.0) != 1.0)
    c.Unsupported("routed_scaling_factor", "this family has none; supported: 1");
  if (c.U32("moe_layer_num_skipped", 0, kLayersMax, 0) != 0)
    c.Unsupported("moe_layer_num_skipped", "dense layers are not implemented in this family");
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ExpectThisClass(c);
  ReadGqaModel(c, &spec, /*tied=*/true);
  spec.gqa.qk_norm = c.Bool("use_qk_norm", true) ? QkNorm::kHeadRotated : QkNorm::kNone;
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", false);
  if (c.U32("attention_head_dim", 2, kHeadDimMax, spec.gqa.head_dim) != spec.gqa.head_dim) {
    c.Fail("attention_head_dim", "expected the lanes of a head " + std::to_string(spec.gqa.head_dim));
  }
  spec.gate.experts = Uniform(c, "num_experts", kExpertsMax, 0);
  spec.gate.top_k = Uniform(c, "moe_topk", kExpertsMax, 0);
  if (spec.gate.experts == 0) c.Fail("num_experts", "missing; expected an integer");
  if (c.ok() && (spec.gate.top_k == 0 || spec.gate.top_k > spec.gate.experts)) {
    c.Fail("moe_topk", "expected an integer in 1.." + std::to_string(spec.gate.experts) + ", got " +
                           std::to_string(spec.gate.top_k));
  }
  spec.gate.renormalize = true;
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  if (Uniform(c, "moe_intermediate_size", kHiddenMax, spec.expert_inter) != spec.expert_inter) {
    c.Unsupported("moe_intermediate_size", "expected intermediate_size " + std::to_string(spec.expert_inter));
  }
  const bool mixed = c.Bool("use_mixed_mlp_moe", true);
  const uint64_t shared = mixed ? Uniform(c, "num_shared_expert", 1 << 10, 1) : 0;
  SetShared(c, "num_shared_expert", shared * spec.expert_inter, &spec);
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.q_norm = "query_layernorm";
  names.k_norm = "key_layernorm";
  names.gate = "mlp.gate.wg.weight";
  names.shared = "mlp.shared_mlp.";
  out->AddModel(names);
}

}  // namespace

extern const Family kHunyuanMoe;
const Family kHunyuanMoe{"hunyuan_v1_moe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
