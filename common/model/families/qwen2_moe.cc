// Qwen1.5-MoE and Qwen2-MoE (Qwen2MoeForCausalLM): biases of q, k, v; a shared expert behind a sigmoid gate.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"qwen2_moe"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.gqa.qkv_bias = c.Bool("qkv_bias", true);
  const bool slides = c.Bool("use_sliding_window", false);
  const uint32_t window = slides ? ReadWindow(c) : 0;
  if (!ReadLayerTypes(c, window, &spec) && slides) {
    const uint32_t end = c.U32("max_window_layers", 0, 1 << 20, 28);
    for (uint32_t i = 0; i < spec.layers.size() && i < end; i += 2) spec.layers[i].window = window;
  }
  ReadExperts(c, &spec, {"num_experts", "num_local_experts"});
  spec.gate.renormalize = c.Bool("norm_topk_prob", false);
  spec.expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  ReadSparseStep(c, &spec);
  SetShared(c, "shared_expert_intermediate_size", c.U32("shared_expert_intermediate_size", 1, kHiddenMax),
            &spec);
  spec.shared_gate = true;
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.shared = "mlp.shared_expert.";
  out->AddModel(names);
}

}  // namespace

extern const Family kQwen2Moe;
const Family kQwen2Moe{"qwen2_moe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
