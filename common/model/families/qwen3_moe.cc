// Qwen3-MoE (Qwen3MoeForCausalLM): norms of each query and key head before rotation, softmax gate.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"qwen3_moe"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  ReadNormedHeads(c, &spec);
  if (c.Bool("use_sliding_window", false)) {
    const uint32_t window = ReadWindow(c);
    for (LayerSpec& layer : spec.layers) layer.window = window;
  }
  c.ExpectBool("qkv_bias", false, "biases of q, k and v alone are not implemented in this family");
  c.ExpectBool("use_qk_norm", true, "this family has norms of queries and keys");
  if (c.U32("shared_expert_intermediate_size", 0, kHiddenMax, 0) != 0)
    c.Unsupported("shared_expert_intermediate_size", "a shared expert is not implemented in this family");
  ReadExperts(c, &spec, {"num_experts", "num_local_experts"});
  spec.gate.renormalize = c.Bool("norm_topk_prob", false);
  spec.expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  ReadSparseStep(c, &spec);
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) { out->AddModel({}); }

}  // namespace

extern const Family kQwen3Moe;
const Family kQwen3Moe{"qwen3_moe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
