#include "common/model/families/reads.h"

#include <algorithm>
#include <cmath>

#include "common/model/rope.h"

namespace consilium {
namespace {
std::string Text(uint64_t n) { return std::to_string(n); }
}  // namespace

void ReadActivation(ConfigReader& config, std::string_view key, ModelSpec* spec) {
  config.ExpectText(key, {"silu", "gelu_pytorch_tanh", "gelu"});
  const std::string name = config.Text(key, "silu");
  if (name == "gelu_pytorch_tanh") spec->activation = kernels::Activation::kGeluTanh;
  if (name == "gelu") spec->activation = kernels::Activation::kGeluErf;
}

void ReadCommon(ConfigReader& config, ModelSpec* spec, bool tied, std::string_view norm_eps) {
  spec->hidden = config.U32("hidden_size", 1, kHiddenMax);
  spec->vocab = config.U32("vocab_size", 1, 1 << 24);
  spec->context = config.U32("max_position_embeddings", 1, 1 << 26);
  spec->norm_eps = static_cast<float>(config.Number(norm_eps, 1e-30, 1));
  spec->tied_embeddings = config.Bool("tie_word_embeddings", tied);
  ReadActivation(config, "hidden_act", spec);
}

void ReadLayers(ConfigReader& config, ModelSpec* spec) {
  spec->layers.assign(config.U32("num_hidden_layers", 1, kLayersMax), LayerSpec{});
}

void ReadHeads(ConfigReader& c, ModelSpec* spec) {
  GqaSpec& g = spec->gqa;
  g.q_heads = c.U32("num_attention_heads", 1, kHeadsMax);
  g.kv_heads = c.U32("num_key_value_heads", 1, kHeadsMax, g.q_heads);
  if (c.ok() && g.q_heads % g.kv_heads != 0) {
    c.Fail("num_key_value_heads",
           "expected a divisor of num_attention_heads " + Text(g.q_heads) + ", got " + Text(g.kv_heads));
  }
  if (c.ok() && !c.Has("head_dim") && spec->hidden % g.q_heads != 0) {
    c.Fail("head_dim", "missing, and hidden_size " + Text(spec->hidden) +
                           " is not a multiple of num_attention_heads " + Text(g.q_heads));
  }
  g.head_dim = c.U32("head_dim", 2, kHeadDimMax, spec->hidden / g.q_heads);
  if (c.ok() && (g.head_dim < 2 || g.head_dim % 2 != 0))
    c.Fail("head_dim", "expected an even number, got " + Text(g.head_dim));
  g.scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
}

void ReadGqaModel(ConfigReader& c, ModelSpec* spec, bool tied) {
  ReadCommon(c, spec, tied);
  ReadLayers(c, spec);
  ReadHeads(c, spec);
}

void ReadNormedHeads(ConfigReader& c, ModelSpec* spec) {
  spec->gqa.qk_norm = QkNorm::kHead;
  spec->gqa.qkv_bias = spec->gqa.o_bias = c.Bool("attention_bias", false);
}

double PartialRotary(ConfigReader& c, double fallback) {
  double factor = c.Number("partial_rotary_factor", 0, 1, fallback);
  if (auto rope = c.Object("rope_parameters")) factor = rope->Number("partial_rotary_factor", 0, 1, factor);
  return factor;
}

void ReadGqaRope(ConfigReader& c, ModelSpec* spec, bool partial, bool interleaved) {
  const double factor = PartialRotary(c);
  if (!c.ok()) return;
  if (factor != 1.0 && !partial) c.Unsupported("partial_rotary_factor", "this family rotates whole heads");
  const auto dims = static_cast<uint32_t>(spec->gqa.head_dim * factor);
  if (c.ok() && (dims < 2 || dims % 2 != 0 || dims > kernels::kRopeLanesMax)) {
    c.Fail("partial_rotary_factor", "expected an even number of rotary lanes in 2.." +
                                        Text(kernels::kRopeLanesMax) + ", got " + Text(dims));
  }
  if (c.ok()) spec->rope = ReadRope(c, dims, interleaved, spec->context).rope;
}

void ReadExperts(ConfigReader& c, ModelSpec* spec, std::initializer_list<std::string_view> experts_keys,
                 std::string_view top_k_key) {
  std::string_view key = *experts_keys.begin();
  for (std::string_view k : experts_keys) {
    if (c.Has(k)) key = k;
  }
  kernels::GateSpec& gate = spec->gate;
  gate.experts = c.U32(key, 1, kExpertsMax);
  gate.top_k = c.U32(top_k_key, 1, kExpertsMax);
  if (c.ok() && gate.top_k > gate.experts) {
    c.Fail(top_k_key,
           "expected at most " + std::string(key) + " " + Text(gate.experts) + ", got " + Text(gate.top_k));
  }
}

void CheckGroups(ConfigReader& c, const kernels::GateSpec& gate, uint32_t experts_a_group_min) {
  if (!c.ok()) return;
  const uint32_t size = gate.experts / gate.groups;
  if (gate.experts % gate.groups != 0) {
    c.Fail("n_group",
           "expected a divisor of n_routed_experts " + Text(gate.experts) + ", got " + Text(gate.groups));
  } else if (gate.groups_kept > gate.groups) {
    c.Fail("topk_group", "expected at most n_group " + Text(gate.groups) + ", got " + Text(gate.groups_kept));
  } else if (gate.groups > 1 && size < experts_a_group_min) {
    c.Fail("n_group",
           "a group's score is the sum of its two best experts; expected at least two experts a group, got " +
               Text(size));
  } else if (gate.top_k > gate.groups_kept * size) {
    c.Fail("num_experts_per_tok", "expected at most the " + Text(gate.groups_kept * size) +
                                      " experts of the kept groups, got " + Text(gate.top_k));
  }
}

void ReadSigmoidGate(ConfigReader& c, ModelSpec* spec) {
  kernels::GateSpec& gate = spec->gate;
  gate.groups = c.U32("n_group", 1, kExpertsMax, 1);
  gate.groups_kept = c.U32("topk_group", 1, kExpertsMax, 1);
  c.ExpectText("topk_method", {"noaux_tc"});
  c.ExpectText("scoring_func", {"sigmoid", "noaux_tc"});  // dots.llm1 names the method here
  gate.score = kernels::GateSpec::Score::kSigmoid;
  gate.has_bias = true;
  gate.renormalize = c.Bool("norm_topk_prob", true);
  gate.renormalize_epsilon = 1e-20f;
  gate.scale = static_cast<float>(c.Number("routed_scaling_factor", 1e-6, 1e6));
  CheckGroups(c, gate, 2);
}

namespace {
void ReadDenseFirst(ConfigReader& c, ModelSpec* spec) {
  const uint32_t dense_inter = c.U32("intermediate_size", 1, kHiddenMax);
  const uint32_t first_moe = c.U32("first_k_dense_replace", 0, kLayersMax);
  const uint32_t every = c.U32("moe_layer_freq", 1, kLayersMax, 1);
  for (uint32_t i = 0; i < spec->layers.size(); ++i) {
    if (i >= first_moe && i % every == 0) continue;
    spec->layers[i].ffn = FfnKind::kDense;
    spec->layers[i].dense_inter = dense_inter;
  }
}
}  // namespace

void SetShared(ConfigReader& c, std::string_view key, uint64_t width, ModelSpec* spec) {
  if (width > kHiddenMax) {
    c.Fail(key, "the shared expert is " + Text(width) + " lanes wide; expected at most " + Text(kHiddenMax));
    return;
  }
  for (LayerSpec& layer : spec->layers) {
    if (layer.ffn == FfnKind::kMoe) layer.shared_inter = static_cast<uint32_t>(width);
  }
}

void ReadSharedCount(ConfigReader& c, std::string_view key, ModelSpec* spec) {
  SetShared(c, key, uint64_t{c.U32(key, 0, 1 << 10, 0)} * spec->expert_inter, spec);
}

void ReadDeepseekLayers(ConfigReader& c, ModelSpec* spec) {
  spec->expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  ReadDenseFirst(c, spec);
  ReadSharedCount(c, "n_shared_experts", spec);
}

void ReadSparseStep(ConfigReader& c, ModelSpec* spec) {
  const uint32_t step = c.U32("decoder_sparse_step", 1, kLayersMax, 1);
  const std::vector<uint32_t> dense = c.U32List("mlp_only_layers", kLayersMax);
  for (uint32_t i = 0; i < spec->layers.size(); ++i) {
    const bool moe = (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    if (moe) continue;
    spec->layers[i].ffn = FfnKind::kDense;
    spec->layers[i].dense_inter = c.U32("intermediate_size", 1, kHiddenMax);
  }
}

bool ReadLayerTypes(ConfigReader& c, uint32_t window, ModelSpec* spec) {
  if (!c.Has("layer_types")) return false;
  const std::vector<std::string> types = c.TextList("layer_types");
  if (!c.ok()) return true;
  if (types.size() != spec->layers.size()) {
    c.Fail("layer_types",
           "expected one for each of " + Text(spec->layers.size()) + " layers, got " + Text(types.size()));
    return true;
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] == "sliding_attention") {
      if (window == 0) c.Fail("sliding_window", "missing; layer_types has sliding_attention");
      spec->layers[i].window = window;
    } else if (types[i] != "full_attention") {
      c.Unsupported("layer_types",
                    "\"" + types[i] + "\" is not supported; supported: full_attention, sliding_attention");
    }
  }
  return true;
}

void SetMixers(ConfigReader& c, const std::vector<std::string>& types, std::string_view name, Mixer mixer,
               ModelSpec* spec) {
  if (!c.ok()) return;
  if (types.size() != spec->layers.size()) {
    c.Fail("layer_types",
           "expected one for each of " + Text(spec->layers.size()) + " layers, got " + Text(types.size()));
    return;
  }
  bool attends = false;
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] == name) {
      spec->layers[i].mixer = mixer;
    } else if (types[i] == "full_attention") {
      attends = true;
    } else {
      c.Unsupported("layer_types", "\"" + types[i].substr(0, 60) + "\" is not supported; supported: " +
                                       std::string(name) + ", full_attention");
    }
  }
  if (c.ok() && !attends) c.Unsupported("layer_types", "a model without any full_attention is not supported");
}

uint32_t ReadWindow(ConfigReader& c, std::string_view key) { return c.U32(key, 1, 1 << 26, 0); }

void ReadMla(ConfigReader& c, ModelSpec* spec, bool mscale) {
  spec->mla_attention = true;
  MlaSpec& m = spec->mla;
  m.heads = c.U32("num_attention_heads", 1, kHeadsMax);
  if (c.U32("num_key_value_heads", 1, kHeadsMax, m.heads) != m.heads) {
    c.Fail("num_key_value_heads", "expected num_attention_heads " + Text(m.heads) + " (latent attention)");
  }
  m.q_lora = c.U32("q_lora_rank", 1, kHiddenMax, 0);
  m.kv_lora = c.U32("kv_lora_rank", 1, kHeadDimMax);
  m.nope = c.U32("qk_nope_head_dim", 1, kHeadDimMax);
  m.rope = c.U32("qk_rope_head_dim", 2, kernels::kRopeLanesMax);
  m.v_dim = c.U32("v_head_dim", 1, kHeadDimMax);
  if (c.ok() && m.rope % 2 != 0) c.Fail("qk_rope_head_dim", "expected an even number, got " + Text(m.rope));
  m.bias = c.Bool("attention_bias", false);
  const bool interleaved = c.Bool("rope_interleave", true);
  if (!c.ok()) return;
  const RopeRead read = ReadRope(c, m.rope, interleaved, spec->context);
  spec->rope = read.rope;
  const double factor = mscale ? read.mscale_all_squared : 1.0;
  m.scale = static_cast<float>(factor / std::sqrt(static_cast<double>(m.nope + m.rope)));
  m.norm_eps = 1e-6f;  // the class builds these norms without rms_norm_eps
}

void ReadMlaModel(ConfigReader& c, ModelSpec* spec) {
  ReadCommon(c, spec);
  ReadLayers(c, spec);
  ReadMla(c, spec);
  ReadExperts(c, spec, {"n_routed_experts"});
}

}  // namespace consilium
