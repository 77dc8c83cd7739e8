// DBRX (DbrxForCausalLM): fused and clamped q, k, v; LayerNorm without bias; weights divided by their p-norm;
// experts stacked as w1, v1, w2, all [E I, H].
#include "common/model/families/reads.h"
#include "common/model/rope.h"

#include <cmath>

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"dbrx"};

void ReadAttention(ConfigReader& c, ConfigReader& attn, ModelSpec* spec) {
  GqaSpec& g = spec->gqa;
  g.q_heads = c.U32("n_heads", 1, kHeadsMax);
  g.kv_heads = attn.U32("kv_n_heads", 1, kHeadsMax, 1);
  if (!c.ok()) return;
  if (spec->hidden % (2 * g.q_heads) != 0)
    c.Fail("n_heads", "expected a divisor of half of d_model " + std::to_string(spec->hidden));
  if (g.q_heads % g.kv_heads != 0)
    attn.Fail("kv_n_heads", "expected a divisor of n_heads " + std::to_string(g.q_heads));
  if (!c.ok()) return;
  g.head_dim = spec->hidden / g.q_heads;
  g.scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
  g.clip = static_cast<float>(attn.Number("clip_qkv", 1e-6, 1e6, 0));
  if (g.head_dim > kernels::kRopeLanesMax) c.Fail("n_heads", "heads of more than 1024 lanes");
  ConfigReader& rope = c.Has("rope_parameters") || c.Has("rope_theta") ? c : attn;
  if (c.ok()) spec->rope = ReadRope(rope, g.head_dim, /*interleaved=*/false, spec->context).rope;
}

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  spec.hidden = c.U32("d_model", 1, kHiddenMax);
  spec.vocab = c.U32("vocab_size", 1, 1 << 24);
  spec.context = c.U32("max_seq_len", 1, 1 << 26);
  spec.tied_embeddings = c.Bool("tie_word_embeddings", false);
  spec.norm = NormKind::kLayer;
  spec.norm_eps = 1e-5f;  // torch's default; the config has no key
  spec.layers.assign(c.U32("n_layers", 1, kLayersMax), LayerSpec{});
  auto attn = c.Object("attn_config"), ffn = c.Object("ffn_config");
  if (!attn) c.Fail("attn_config", "missing; expected an object");
  if (!ffn) c.Fail("ffn_config", "missing; expected an object");
  if (!c.ok()) return spec;
  ReadAttention(c, *attn, &spec);
  ReadExperts(*ffn, &spec, {"moe_num_experts"}, "moe_top_k");
  // Releases leave the key out, which means 1; null means weights as they are.
  if (!ffn->IsNull("moe_normalize_expert_weights")) {
    const double p = ffn->Number("moe_normalize_expert_weights", 0, 1e9, 1.0);
    if (p != 1 && p != 2)
      ffn->Unsupported("moe_normalize_expert_weights", "only norms 1 and 2 are supported");
    spec.gate.renormalize = true;
    spec.gate.renormalize_norm = p == 2 ? 2 : 1;
  }
  if (auto act = ffn->Object("ffn_act_fn")) ReadActivation(*act, "name", &spec);
  spec.expert_inter = ffn->U32("ffn_hidden_size", 1, kHiddenMax);
  return spec;
}

void AddLayer(const ModelSpec& spec, uint32_t i, RoleList* out) {
  const std::string prefix = "transformer.blocks." + std::to_string(i) + ".";
  const std::string norms = prefix + "norm_attn_norm.", mlp = prefix + "ffn.experts.mlp.";
  const uint64_t hidden = spec.hidden, inter = spec.expert_inter, experts = spec.gate.experts;
  const uint64_t q = spec.gqa.q_heads, kv = spec.gqa.kv_heads, dim = spec.gqa.head_dim, all = q + 2 * kv;
  out->AddNorm(LayerRole(i, "input_norm"), norms + "norm_1", hidden, {});
  out->AddNorm(LayerRole(i, "post_norm"), norms + "norm_2", hidden, {});
  const auto slice = [&](const char* role, uint64_t begin, uint64_t heads) {
    out->Add(ModelPart::kAttention, LayerRole(i, role), norms + "attn.Wqkv.weight", {heads * dim, hidden},
             {.stored = {all * dim, hidden}, .begin = begin, .count = heads, .of = all});
  };
  slice("q", 0, q);
  slice("k", q, kv);
  slice("v", q + kv, kv);
  out->Add(ModelPart::kAttention, LayerRole(i, "o"), norms + "attn.out_proj.weight", {hidden, q * dim});
  out->Add(ModelPart::kGate, LayerRole(i, "gate"), prefix + "ffn.router.layer.weight", {experts, hidden});
  constexpr const char* kNames[3] = {"w1", "v1", "w2"};
  for (uint32_t e = 0; e < experts; ++e) {
    for (int p = 0; p < 3; ++p) {
      out->AddExpert(i, e, static_cast<ExpertPart>(p), mlp + kNames[p],
                     {.stored = {experts * inter, hidden}, .begin = e, .of = experts, .transposed = p == 2});
    }
  }
}

void List(const ModelSpec& spec, RoleList* out) {
  FileNames names;
  names.root = "transformer.";
  names.embed = "wte.weight";
  names.norm = "norm_f.weight";
  out->AddEnds(names);
  for (uint32_t i = 0; i < spec.layers.size(); ++i) AddLayer(spec, i, out);
}

}  // namespace

extern const Family kDbrx;
const Family kDbrx{"dbrx", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
