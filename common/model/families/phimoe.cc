// Phi-3.5-MoE (PhimoeForCausalLM): LayerNorm with bias, biases in attention and head, sparsemixer gate,
// longrope with its own multipliers of the tables.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"phimoe"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadCommon(c, &spec);
  spec.norm = NormKind::kLayer;
  spec.norm_bias = true;
  ReadLayers(c, &spec);
  ReadHeads(c, &spec);
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", false);
  spec.head_bias = c.Bool("lm_head_bias", false);
  if (spec.head_bias && spec.tied_embeddings)
    c.Unsupported("lm_head_bias", "true with tie_word_embeddings is not supported");
  // Releases have a window as long as the context.
  const uint32_t window = ReadWindow(c);
  for (LayerSpec& layer : spec.layers) layer.window = window;
  ReadExperts(c, &spec, {"num_local_experts"});
  if (c.ok() && spec.gate.top_k != 2)
    c.Unsupported("num_experts_per_tok", std::to_string(spec.gate.top_k) + " is not supported; supported: 2");
  spec.gate.score = kernels::GateSpec::Score::kSparsemixer;
  spec.gate.jitter = static_cast<float>(c.Number("router_jitter_noise", 0, 1, 0.01));
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  ReadGqaRope(c, &spec);
  // Beyond the original context Transformers 5.23, which made our golden, changes to long_mscale and keeps
  // short_factor: layer 0's router logits agree to 3e-6 that way and are off by 4 with long_factor.
  // Microsoft's own code changes both; this line is the difference.
  spec.rope.long_inv_freq = spec.rope.inv_freq;
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.gate = "block_sparse_moe.gate.weight";
  names.experts = "block_sparse_moe.experts.";
  names.expert = kW132;
  out->AddModel(names);
}

}  // namespace

extern const Family kPhimoe;
const Family kPhimoe{"phimoe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
