// DeepSeek-V3, R1, V3.1 and Kimi K2 (DeepseekV3ForCausalLM): multi-head latent attention, sigmoid gate with
// correction bias and groups (noaux_tc), shared experts, first layers dense. Technical report: arXiv
// 2412.19437.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "common/model/families/family.h"
#include "common/model/rope.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"deepseek_v3", "kimi_k2"};

void ReadGate(ConfigReader& c, kernels::GateSpec* gate) {
  gate->experts = c.U32("n_routed_experts", 1, kExpertsMax);
  gate->top_k = c.U32("num_experts_per_tok", 1, kExpertsMax);
  gate->groups = c.U32("n_group", 1, kExpertsMax, 1);
  gate->groups_kept = c.U32("topk_group", 1, kExpertsMax, 1);
  c.ExpectText("topk_method", {"noaux_tc"});
  c.ExpectText("scoring_func", {"sigmoid"});
  gate->score = kernels::GateSpec::Score::kSigmoid;
  gate->has_bias = true;
  gate->renormalize = c.Bool("norm_topk_prob", true);
  gate->renormalize_epsilon = 1e-20f;
  gate->scale = static_cast<float>(c.Number("routed_scaling_factor", 1e-6, 1e6));
  if (!c.ok()) return;
  if (gate->experts % gate->groups != 0) {
    c.Fail("n_group", "expected a divisor of n_routed_experts " + std::to_string(gate->experts) + ", got " +
                          std::to_string(gate->groups));
  } else if (gate->groups_kept > gate->groups) {
    c.Fail("topk_group", "expected at most n_group " + std::to_string(gate->groups) + ", got " +
                             std::to_string(gate->groups_kept));
  } else if (gate->groups > 1 && gate->experts / gate->groups < 2) {
    c.Fail("n_group",
           "a group's score is the sum of its two best experts; expected at least two experts a group, got " +
               std::to_string(gate->experts / gate->groups));
  } else if (gate->top_k > gate->groups_kept * (gate->experts / gate->groups)) {
    c.Fail("num_experts_per_tok", "expected at most the " +
                                      std::to_string(gate->groups_kept * (gate->experts / gate->groups)) +
                                      " experts of the kept groups, got " + std::to_string(gate->top_k));
  }
}

void ReadAttention(ConfigReader& c, ModelSpec* spec) {
  spec->mla_attention = true;
  MlaSpec& m = spec->mla;
  m.heads = c.U32("num_attention_heads", 1, kHeadsMax);
  if (c.U32("num_key_value_heads", 1, kHeadsMax, m.heads) != m.heads) {
    c.Fail("num_key_value_heads",
           "expected num_attention_heads " + std::to_string(m.heads) + " (latent attention)");
  }
  m.q_lora = c.U32("q_lora_rank", 1, kHiddenMax, 0);
  m.kv_lora = c.U32("kv_lora_rank", 1, kHeadDimMax);
  m.nope = c.U32("qk_nope_head_dim", 1, kHeadDimMax);
  m.rope = c.U32("qk_rope_head_dim", 2, kHeadDimMax);
  m.v_dim = c.U32("v_head_dim", 1, kHeadDimMax);
  if (c.ok() && m.rope % 2 != 0)
    c.Fail("qk_rope_head_dim", "expected an even number, got " + std::to_string(m.rope));
  c.ExpectBool("attention_bias", false, "biases of latent attention are not implemented");
  const bool interleaved = c.Bool("rope_interleave", true);
  if (!c.ok()) return;
  const RopeRead read = ReadRope(c, m.rope, interleaved, spec->context);
  spec->rope = read.rope;
  m.scale = static_cast<float>(read.mscale_all_squared / std::sqrt(static_cast<double>(m.nope + m.rope)));
  m.norm_eps = 1e-6f;  // the class builds these norms without rms_norm_eps
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadCommon(c, &spec);
  const uint32_t layers = c.U32("num_hidden_layers", 1, kLayersMax);
  ReadAttention(c, &spec);
  ReadGate(c, &spec.gate);
  spec.expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  const uint32_t dense_inter = c.U32("intermediate_size", 1, kHiddenMax);
  const uint32_t first_moe = c.U32("first_k_dense_replace", 0, kLayersMax);
  const uint32_t every = c.U32("moe_layer_freq", 1, kLayersMax, 1);
  const uint64_t shared = uint64_t{c.U32("n_shared_experts", 0, 1 << 10, 0)} * spec.expert_inter;
  if (shared > kHiddenMax)
    c.Fail("n_shared_experts", "the shared expert is " + std::to_string(shared) +
                                   " lanes wide; expected at most " + std::to_string(kHiddenMax));
  if (!c.ok()) return spec;
  for (uint32_t i = 0; i < layers; ++i) {
    const bool moe = i >= first_moe && i % every == 0;
    spec.layers.push_back(moe ? LayerSpec{FfnKind::kMoe, 0, static_cast<uint32_t>(shared)}
                              : LayerSpec{FfnKind::kDense, dense_inter, 0});
  }
  return spec;
}

void List(const ModelSpec& spec, RoleList* out) {
  out->AddEnds();
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string mlp = prefix + "mlp.";
    out->AddBlockNorms(i, prefix);
    out->AddAttention(i, prefix + "self_attn.");
    if (layer.ffn == FfnKind::kDense) {
      out->AddMlp(ModelPart::kDense, i, "dense", mlp, layer.dense_inter, kGateUpDown);
      continue;
    }
    out->Add(ModelPart::kGate, LayerRole(i, "gate"), mlp + "gate.weight", {spec.gate.experts, spec.hidden});
    out->Add(ModelPart::kGate, LayerRole(i, "gate_bias"), mlp + "gate.e_score_correction_bias",
             {spec.gate.experts});
    if (layer.shared_inter > 0) {
      out->AddMlp(ModelPart::kShared, i, "shared", mlp + "shared_experts.", layer.shared_inter, kGateUpDown);
    }
    out->AddExperts(i, mlp + "experts.", kGateUpDown);
  }
}

// Multi-token prediction layers follow the decoder's own: model.layers.<num_hidden_layers and up>.
bool Ignored(const ModelSpec& spec, std::string_view tensor) {
  if (tensor.ends_with("rotary_emb.inv_freq") || (spec.tied_embeddings && tensor == "lm_head.weight"))
    return true;
  constexpr std::string_view kPrefix = "model.layers.";
  if (!tensor.starts_with(kPrefix)) return false;
  const char* begin = tensor.data() + kPrefix.size();
  uint32_t layer = 0;
  const auto [end, error] = std::from_chars(begin, tensor.data() + tensor.size(), layer);
  return error == std::errc() && end != begin && layer >= spec.layers.size();
}

}  // namespace

const Family kDeepseekV3{"deepseek_v3", kTypes, Read, List, Ignored};

}  // namespace consilium
