// ERNIE-4.5-MoE (Ernie4_5_MoeForCausalLM): adjacent-pair rotation, softmax gate with a correction bias for
// the choice only, weights divided by max(sum, moe_norm_min), shared experts. With use_bias attention, dense
// and shared MLPs and the head have biases, routed experts none.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"ernie4_5_moe"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec, /*tied=*/true);
  spec.gqa.qkv_bias = spec.gqa.o_bias = spec.head_bias = c.Bool("use_bias", false);
  if (spec.head_bias && spec.tied_embeddings)
    c.Unsupported("use_bias", "true with tie_word_embeddings is not supported");
  c.ExpectBool("use_rmsnorm", true, "norms with a mean are not implemented in this family");
  ReadExperts(c, &spec, {"moe_num_experts"}, "moe_k");
  spec.gate.has_bias = true;
  spec.gate.renormalize = true;
  spec.gate.renormalize_min = static_cast<float>(c.Number("moe_norm_min", 1e-30, 1, 1e-12));
  spec.expert_inter = c.U32("moe_intermediate_size", 1, kHiddenMax);
  const uint32_t dense_inter = c.U32("intermediate_size", 1, kHiddenMax);
  const uint32_t begin = c.U32("moe_layer_start_index", 0, kLayersMax, 1);
  const uint32_t last = static_cast<uint32_t>(c.Number("moe_layer_end_index", -1, kLayersMax, -1) < 0
                                                  ? spec.layers.size() - 1
                                                  : c.U32("moe_layer_end_index", 0, kLayersMax));
  const uint32_t every = c.U32("moe_layer_interval", 1, kLayersMax, 1);
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    if ((i + 1) % every == 0 && i >= begin && i <= last) continue;
    spec.layers[i].ffn = FfnKind::kDense;
    spec.layers[i].dense_inter = dense_inter;
  }
  ReadSharedCount(c, "moe_num_shared_experts", &spec);
  ReadGqaRope(c, &spec, /*partial=*/false, /*interleaved=*/true);
  return spec;
}

void AddMlpBiases(RoleList* out) {
  const std::vector<TensorRole> roles = out->roles;
  for (const TensorRole& r : roles) {
    if (r.part != ModelPart::kDense && r.part != ModelPart::kShared) continue;
    const std::string module = r.name.substr(0, r.name.size() - std::string_view(".weight").size());
    out->Add(r.part, r.role + "_bias", module + ".bias", {r.shape[0]});
  }
}

void List(const ModelSpec& spec, RoleList* out) {
  FileNames names;
  names.gate_bias = "mlp.moe_statics.e_score_correction_bias";
  out->AddModel(names);
  if (spec.gqa.o_bias) AddMlpBiases(out);
  for (TensorRole& r : out->roles) {
    if (r.name.ends_with(names.gate_bias)) r.piece.stored = {1, r.shape[0]};
  }
}

}  // namespace

extern const Family kErnie45Moe;
const Family kErnie45Moe{"ernie4_5_moe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
