// gpt-oss (GptOssForCausalLM): sinks, sliding and full layers by turns, biases everywhere, softmax over the
// chosen logits, clamped SwiGLU experts whose gate and up lanes alternate.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"gpt_oss"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", true);
  spec.gqa.sinks = true;
  const uint32_t window = ReadWindow(c);
  if (!ReadLayerTypes(c, window, &spec)) {
    for (size_t i = 0; i < spec.layers.size(); i += 2) spec.layers[i].window = window;
  }
  ReadExperts(c, &spec, {"num_local_experts", "num_experts"});
  spec.gate.score = kernels::GateSpec::Score::kSoftmaxChosen;
  spec.gate_weight_bias = true;
  spec.expert_bias = true;
  spec.activation = kernels::Activation::kSwigluClamped;
  spec.swiglu_alpha = static_cast<float>(c.Number("swiglu_alpha", 0, 1e6, 1.702));
  spec.swiglu_limit = static_cast<float>(c.Number("swiglu_limit", 0, 1e6, 7.0));
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  ReadGqaRope(c, &spec);
  return spec;
}

void AddBiases(const ModelSpec& spec, uint32_t layer, const std::string& experts, RoleList* out) {
  const uint64_t count = spec.gate.experts, inter = spec.expert_inter;
  for (uint32_t e = 0; e < count; ++e) {
    for (uint32_t p = 0; p < 2; ++p) {
      out->AddExpertBias(
          layer, e, static_cast<ExpertPart>(p), experts + "gate_up_proj_bias",
          {.stored = {count, 2 * inter}, .begin = e, .of = count, .first_row = p, .row_step = 2});
    }
    out->AddExpertBias(layer, e, ExpertPart::kDown, experts + "down_proj_bias",
                       {.stored = {count, spec.hidden}, .begin = e, .of = count});
  }
}

void List(const ModelSpec& spec, RoleList* out) {
  const FileNames names;
  out->AddEnds(names);
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".", experts = prefix + "mlp.experts.";
    out->AddBlockNorms(i, prefix, names);
    out->AddAttention(i, prefix + "self_attn.", names);
    out->Add(ModelPart::kGate, LayerRole(i, "gate"), prefix + "mlp.router.weight",
             {spec.gate.experts, spec.hidden});
    out->Add(ModelPart::kGate, LayerRole(i, "gate_weight_bias"), prefix + "mlp.router.bias",
             {spec.gate.experts});
    // bf16 files hold [E, H, 2 I] and [E, I, H].
    out->AddStackedExperts(i, experts + "gate_up_proj", experts + "down_proj", /*transposed=*/true,
                           /*interleaved=*/true);
    AddBiases(spec, i, experts, out);
  }
  out->GroupExperts();
}

}  // namespace

extern const Family kGptOss;
const Family kGptOss{"gpt_oss", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
