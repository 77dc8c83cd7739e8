// Llama-4 text (Llama4ForCausalLM, and the text part of Llama4ForConditionalGeneration): chunked attention on
// rotated layers, full attention with position-scaled queries on the others, one routed expert whose input is
// multiplied by the gate, one shared expert.
#include <algorithm>

#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"llama4", "llama4_text"};

void ReadAttentionPattern(ConfigReader& c, ModelSpec* spec) {
  const std::vector<uint32_t> rotated = c.U32List("no_rope_layers", 1);
  const uint32_t interval = c.U32("no_rope_layer_interval", 1, kLayersMax, 4);
  const uint32_t chunk = c.U32("attention_chunk_size", 1, 1 << 26, 8192);
  const bool tunes = c.Flag("attn_temperature_tuning", true);  // releases write 4 for true
  if (!rotated.empty() && rotated.size() != spec->layers.size()) {
    c.Fail("no_rope_layers", "expected one for each of " + std::to_string(spec->layers.size()) +
                                 " layers, got " + std::to_string(rotated.size()));
    return;
  }
  const std::vector<std::string> types = c.TextList("layer_types");
  for (uint32_t i = 0; i < spec->layers.size(); ++i) {
    LayerSpec& layer = spec->layers[i];
    layer.rotates = rotated.empty() ? (i + 1) % interval != 0 : rotated[i] != 0;
    layer.chunk = layer.rotates ? chunk : 0;
    layer.tunes_queries = tunes && !layer.rotates;
    if (i >= types.size()) continue;
    if (types[i] != "chunked_attention" && types[i] != "full_attention") {
      c.Unsupported("layer_types",
                    "\"" + types[i] + "\" is not supported; supported: chunked_attention, full_attention");
    }
    layer.chunk = types[i] == "chunked_attention" ? chunk : 0;
  }
  spec->tuning.beta = static_cast<float>(c.Number("attn_scale", 0, 1e3, 0.1));
  spec->tuning.floor = c.U32("floor_scale", 1, 1 << 26, 8192);
  spec->tuning.offset = 1;
}

void ReadLayerKinds(ConfigReader& c, ModelSpec* spec) {
  const uint32_t step = c.U32("interleave_moe_layer_step", 1, kLayersMax, 1);
  const std::vector<uint32_t> listed = c.U32List("moe_layers", kLayersMax);
  for (uint32_t i = 0; i < spec->layers.size(); ++i) {
    const bool moe =
        listed.empty() ? (i + 1) % step == 0 : std::find(listed.begin(), listed.end(), i) != listed.end();
    if (moe) {
      spec->layers[i].shared_inter = spec->expert_inter;
    } else {
      spec->layers[i].ffn = FfnKind::kDense;
      spec->layers[i].dense_inter = c.U32("intermediate_size_mlp", 1, kHiddenMax);
    }
  }
}

ModelSpec ReadText(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", false);
  if (c.Bool("use_qk_norm", true)) spec.gqa.qk_norm = QkNorm::kUnitRotated;
  ReadAttentionPattern(c, &spec);
  ReadExperts(c, &spec, {"num_local_experts"});
  if (c.ok() && spec.gate.top_k != 1)
    c.Unsupported("num_experts_per_tok", std::to_string(spec.gate.top_k) + " is not supported; supported: 1");
  spec.gate.score = kernels::GateSpec::Score::kSigmoidOfLogit;
  spec.scale_expert_input = true;
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  ReadLayerKinds(c, &spec);
  ReadGqaRope(c, &spec, /*partial=*/false, /*interleaved=*/true);
  return spec;
}

ModelSpec Read(ConfigReader& c) {
  auto text = c.Object("text_config");
  return ReadText(text ? *text : c);
}

void List(const ModelSpec& spec, RoleList* out) {
  FileNames names;
  out->BesideVision(&names);
  out->AddEnds(names);
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = std::string(names.root) + "layers." + std::to_string(i) + ".";
    const std::string ffn = prefix + "feed_forward.";
    out->AddBlockNorms(i, prefix, names);
    out->AddAttention(i, prefix + "self_attn.", names);
    if (spec.layers[i].ffn == FfnKind::kDense) {
      out->AddMlp(ModelPart::kDense, i, "dense", ffn, spec.layers[i].dense_inter, kGateUpDown);
      continue;
    }
    out->Add(ModelPart::kGate, LayerRole(i, "gate"), ffn + "router.weight", {spec.gate.experts, spec.hidden});
    out->AddMlp(ModelPart::kShared, i, "shared", ffn + "shared_expert.", spec.layers[i].shared_inter,
                kGateUpDown);
    if (out->Has(ffn + "experts.0.gate_proj.weight")) {  // FP8 releases
      out->AddExperts(i, ffn + "experts.", kGateUpDown);
      continue;
    }
    // Files hold [E, H, 2 I] and [E, I, H].
    out->AddStackedExperts(i, ffn + "experts.gate_up_proj", ffn + "experts.down_proj", /*transposed=*/true,
                           /*interleaved=*/false);
  }
}

}  // namespace

extern const Family kLlama4;
const Family kLlama4{"llama4", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
