// Hunyuan-MoE (HunYuanMoEV1ForCausalLM): norms of queries and keys after rotation, an f32 router, a shared
// MLP as wide as num_shared_expert experts.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"hunyuan_v1_moe"};

// The number in a value that releases write as a list of one per layer; layers that differ are refused.
uint32_t Uniform(ConfigReader& c, std::string_view key, uint32_t max, uint32_t fallback) {
  const std::vector<uint32_t> values = c.U32List(key, max);
  for (uint32_t v : values) {
    if (v != values[0]) c.Unsupported(key, "values that differ from layer to layer are not supported");
  }
  return values.empty() ? fallback : values[0];
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec, /*tied=*/true);
  spec.gqa.qk_norm = c.Bool("use_qk_norm", true) ? QkNorm::kHeadRotated : QkNorm::kNone;
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", false);
  c.ExpectBool("use_cla", false, "sharing keys across layers is not implemented");
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
  const uint64_t shared = Uniform(c, "num_shared_expert", 1 << 10, 1);
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
