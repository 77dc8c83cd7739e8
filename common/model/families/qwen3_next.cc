// Qwen3-Next (Qwen3NextForCausalLM) and the text part of Qwen3.5-MoE (Qwen3_5MoeForConditionalGeneration):
// gated delta nets and gated attention by turns, norms by 1 + weight, a shared expert behind a sigmoid gate.
// Qwen3.5 has the projections of its delta nets apart and lies beside a vision tower. Prediction layers (mtp)
// are not used.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kNextTypes[] = {"qwen3_next"};
constexpr std::string_view k35Types[] = {"qwen3_5_moe_text"};
constexpr uint32_t kTapsMax = 64;
constexpr uint32_t kStateDimMax = 1024;

// layer_types, or every full_attention_interval-th layer (4) with attention.
void ReadMixers(ConfigReader& c, ModelSpec* spec) {
  const uint32_t interval = c.U32("full_attention_interval", 1, kLayersMax, 4);
  std::vector<std::string> types;
  if (c.Has("layer_types")) {
    types = c.TextList("layer_types");
  } else {
    for (uint32_t i = 0; i < spec->layers.size(); ++i)
      types.push_back((i + 1) % interval == 0 ? "full_attention" : "linear_attention");
  }
  SetMixers(c, types, "linear_attention", Mixer::kDeltaNet, spec);
}

void ReadDeltaNet(ConfigReader& c, ModelSpec* spec) {
  DeltaNetSpec& d = spec->delta_net;
  d.k_heads = c.U32("linear_num_key_heads", 1, kHeadsMax);
  d.v_heads = c.U32("linear_num_value_heads", 1, kHeadsMax);
  d.k_dim = c.U32("linear_key_head_dim", 1, kStateDimMax);
  d.v_dim = c.U32("linear_value_head_dim", 1, kStateDimMax);
  d.taps = c.U32("linear_conv_kernel_dim", 2, kTapsMax);
  if (c.ok() && d.v_heads % d.k_heads != 0) {
    c.Fail("linear_num_value_heads", "expected a multiple of linear_num_key_heads " +
                                         std::to_string(d.k_heads) + ", got " + std::to_string(d.v_heads));
  }
}

ModelSpec ReadNext(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.norm_plus_one = true;
  spec.gqa.qk_norm = QkNorm::kHead;
  spec.gqa.out_gate = true;
  c.ExpectBool("attention_bias", false, "biases of gated attention are not implemented");
  ReadMixers(c, &spec);
  ReadDeltaNet(c, &spec);
  ReadExperts(c, &spec, {"num_experts"});
  spec.gate.renormalize = c.Bool("norm_topk_prob", true);
  spec.expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  ReadSparseStep(c, &spec);
  SetShared(c, "shared_expert_intermediate_size", c.U32("shared_expert_intermediate_size", 1, kHiddenMax),
            &spec);
  spec.shared_gate = true;
  if (c.ok() && PartialRotary(c, 0) == 0) c.Fail("partial_rotary_factor", "missing");
  ReadGqaRope(c, &spec, /*partial=*/true);
  return spec;
}

ModelSpec Read35(ConfigReader& c) {
  ModelSpec spec = ReadNext(c);
  spec.delta_net.split = true;
  c.ExpectBool("norm_topk_prob", true, "the class divides weights by their sum always");
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  out->BesideVision(&names);
  names.shared = "mlp.shared_expert.";
  out->AddModel(names);
}

bool Ignored35(const ModelSpec& spec, std::string_view tensor) {
  return UsuallyIgnored(spec, tensor) || tensor.starts_with("model.visual.");
}

}  // namespace

extern const Family kQwen3Next, kQwen35Moe;
const Family kQwen3Next{"qwen3_next", kNextTypes, ReadNext, List, UsuallyIgnored};
const Family kQwen35Moe{"qwen3_5_moe", k35Types, Read35, List, Ignored35};

}  // namespace consilium
