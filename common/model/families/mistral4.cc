// Mistral Small 4 (mistral4) and Mistral Large 3 as Mistral ships it (params.json, consolidated.safetensors):
// latent attention, queries scaled with position, softmax gate renormalised, shared experts, first layers
// dense.
#include <cmath>

#include "common/model/families/reads.h"
#include "common/model/rope.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"mistral4"};
constexpr std::string_view kNativeTypes[] = {"mistral_large_3"};

void SetGate(ModelSpec* spec, bool renormalize) {
  spec->gate.renormalize = renormalize;
  spec->gate.renormalize_epsilon = 1e-20f;
}

void TuneAll(ModelSpec* spec, double beta, uint32_t floor) {
  if (beta == 0) return;
  spec->tuning = {static_cast<float>(beta), floor, 0};
  for (LayerSpec& layer : spec->layers) layer.tunes_queries = true;
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadMlaModel(c, &spec);
  spec.gate.groups = c.U32("n_group", 1, kExpertsMax, 1);
  spec.gate.groups_kept = c.U32("topk_group", 1, kExpertsMax, 1);
  CheckGroups(c, spec.gate, 2);
  SetGate(&spec, c.Bool("norm_topk_prob", true));
  spec.gate.scale = static_cast<float>(c.Number("routed_scaling_factor", 1e-6, 1e6, 1.0));
  ReadDeepseekLayers(c, &spec);
  auto rope = c.Object("rope_parameters");
  if (!rope) rope = c.Object("rope_scaling");
  if (rope && rope->Has("llama_4_scaling_beta")) {
    TuneAll(&spec, rope->Number("llama_4_scaling_beta", 0, 1e3),
            rope->U32("original_max_position_embeddings", 1, 1 << 26));
  }
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  out->BesideVision(&names);
  out->AddModel(names);
}

ModelSpec ReadNative(ConfigReader& c) {
  ModelSpec spec;
  spec.hidden = c.U32("dim", 1, kHiddenMax);
  spec.vocab = c.U32("vocab_size", 1, 1 << 24);
  spec.context = c.U32("max_position_embeddings", 1, 1 << 26);
  spec.norm_eps = static_cast<float>(c.Number("norm_eps", 1e-30, 1));
  spec.tied_embeddings = c.Bool("tied_embeddings", false);
  spec.layers.assign(c.U32("n_layers", 1, kLayersMax), LayerSpec{});

  spec.mla_attention = true;
  MlaSpec& m = spec.mla;
  m.heads = c.U32("n_heads", 1, kHeadsMax);
  if (c.U32("n_kv_heads", 1, kHeadsMax, m.heads) != m.heads)
    c.Fail("n_kv_heads", "expected n_heads " + std::to_string(m.heads) + " (latent attention)");
  m.q_lora = c.U32("q_lora_rank", 1, kHiddenMax, 0);
  m.kv_lora = c.U32("kv_lora_rank", 1, kHeadDimMax);
  m.nope = c.U32("qk_nope_head_dim", 1, kHeadDimMax);
  m.rope = c.U32("qk_rope_head_dim", 2, kernels::kRopeLanesMax);
  m.v_dim = c.U32("v_head_dim", 1, kHeadDimMax);
  m.scale = 1.0f / std::sqrt(static_cast<float>(m.nope + m.rope));
  if (c.ok() && m.rope % 2 != 0)
    c.Fail("qk_rope_head_dim", "expected an even number, got " + std::to_string(m.rope));
  if (!c.ok()) return spec;
  auto yarn = c.Object("yarn");
  if (yarn && yarn->Bool("apply_scale", true)) {  // as vLLM reads it: mscale and mscale_all_dim are 1
    const double factor = yarn->Number("factor", 1e-6, 1e6);
    const double g = factor <= 1 ? 1 : 0.1 * std::log(factor) + 1;
    m.scale = static_cast<float>(g * g / std::sqrt(static_cast<double>(m.nope + m.rope)));
  }
  spec.rope = ReadNativeYarn(c, yarn ? &*yarn : nullptr, m.rope, spec.context);

  auto moe = c.Object("moe");
  if (!moe) c.Fail("moe", "missing; expected an object");
  if (!c.ok()) return spec;
  ReadExperts(*moe, &spec, {"num_experts"});
  spec.gate.groups = moe->U32("num_expert_groups", 1, kExpertsMax, 1);
  spec.gate.groups_kept = moe->U32("num_expert_groups_per_tok", 1, kExpertsMax, 1);
  CheckGroups(*moe, spec.gate, 2);
  SetGate(&spec, true);
  spec.gate.scale = static_cast<float>(moe->Number("routed_scale", 1e-6, 1e6, 1.0));
  spec.expert_inter = moe->U32("expert_hidden_dim", 1, kHiddenMax);
  const uint32_t first_moe = moe->U32("first_k_dense_replace", 0, kLayersMax, 0);
  const uint32_t every = moe->U32("route_every_n", 1, kLayersMax, 1);
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    if (i >= first_moe && i % every == 0) continue;
    spec.layers[i].ffn = FfnKind::kDense;
    spec.layers[i].dense_inter = c.U32("hidden_dim", 1, kHiddenMax);
  }
  ReadSharedCount(*moe, "num_shared_experts", &spec);
  if (auto tuning = c.Object("llama_4_scaling")) {
    TuneAll(&spec, tuning->Number("beta", 0, 1e3),
            tuning->U32("original_max_position_embeddings", 1, 1 << 26));
  }
  return spec;
}

void ListNative(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.root = "";
  names.embed = "tok_embeddings.weight";
  names.head = "output.weight";
  names.input_norm = "attention_norm";
  names.post_norm = "ffn_norm";
  names.attention = "attention.";
  constexpr std::string_view kMla[7] = {"wq_a",      "q_a_norm", "wq_b", "wkv_a_with_mqa",
                                        "kv_a_norm", "wkv_b",    "wo"};
  for (int i = 0; i < 7; ++i) names.mla[i] = kMla[i];
  names.dense = "feed_forward.";
  names.shared = "shared_experts.";
  names.mlp = names.expert = kW132;
  names.gate = "gate.weight";
  names.experts = "experts.";
  out->AddModel(names);
}

bool IgnoredNative(const ModelSpec& spec, std::string_view tensor) {
  for (std::string_view vision :
       {"vision_encoder.", "patch_merger.", "pre_mm_projector_norm.", "vision_language_adapter."}) {
    if (tensor.starts_with(vision)) return true;
  }
  return spec.tied_embeddings && tensor == "output.weight";
}

}  // namespace

extern const Family kMistral4, kMistralLarge3;
const Family kMistral4{"mistral4", kTypes, Read, List, UsuallyIgnored};
const Family kMistralLarge3{"mistral_large_3", kNativeTypes, ReadNative, ListNative, IgnoredNative};

}  // namespace consilium
