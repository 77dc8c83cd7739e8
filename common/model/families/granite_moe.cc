// Granite-MoE and its shared-expert sibling (GraniteMoeForCausalLM, GraniteMoeSharedForCausalLM): multipliers
// on embeddings, residuals, scores and logits; softmax over the chosen logits; stacked experts.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"granitemoe", "granitemoeshared"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", false);
  spec.gqa.scale = static_cast<float>(c.Number("attention_multiplier", 1e-9, 1e9, 1.0));
  spec.embed_scale = static_cast<float>(c.Number("embedding_multiplier", 1e-9, 1e9, 1.0));
  spec.residual_scale = static_cast<float>(c.Number("residual_multiplier", 1e-9, 1e9, 1.0));
  spec.logit_scale = static_cast<float>(1.0 / c.Number("logits_scaling", 1e-9, 1e9, 1.0));
  ReadExperts(c, &spec, {"num_local_experts"});
  spec.gate.score = kernels::GateSpec::Score::kSoftmaxChosen;
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  SetShared(c, "shared_intermediate_size", c.U32("shared_intermediate_size", 0, kHiddenMax, 0), &spec);
  c.ExpectText("position_embedding_type", {"rope"});
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec& spec, RoleList* out) {
  const FileNames names;
  out->AddEnds(names);
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".", moe = prefix + "block_sparse_moe.";
    out->AddBlockNorms(i, prefix, names);
    out->AddAttention(i, prefix + "self_attn.", names);
    out->Add(ModelPart::kGate, LayerRole(i, "gate"), moe + "router.layer.weight",
             {spec.gate.experts, spec.hidden});
    out->AddStackedExperts(i, moe + "input_linear.weight", moe + "output_linear.weight", false, false);
    const uint64_t inter = spec.layers[i].shared_inter;
    if (inter == 0) continue;
    for (uint32_t p = 0; p < 2; ++p) {
      out->Add(ModelPart::kShared, LayerRole(i, p == 0 ? "shared.gate" : "shared.up"),
               prefix + "shared_mlp.input_linear.weight", {inter, spec.hidden},
               {.stored = {2 * inter, spec.hidden}, .begin = p, .of = 2});
    }
    out->Add(ModelPart::kShared, LayerRole(i, "shared.down"), prefix + "shared_mlp.output_linear.weight",
             {spec.hidden, inter});
  }
}

}  // namespace

extern const Family kGraniteMoe;
const Family kGraniteMoe{"granitemoe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
