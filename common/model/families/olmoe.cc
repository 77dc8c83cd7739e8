// OLMoE (OlmoeForCausalLM): norms over the whole projections of queries and keys, optional clamp, plain
// softmax weights.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"olmoe"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.gqa.qk_norm = QkNorm::kProjection;
  spec.gqa.qkv_bias = spec.gqa.o_bias = c.Bool("attention_bias", false);
  spec.gqa.clip = static_cast<float>(c.Number("clip_qkv", 1e-6, 1e6, 0));
  ReadExperts(c, &spec, {"num_experts", "num_local_experts"});
  spec.gate.renormalize = c.Bool("norm_topk_prob", false);
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) { out->AddModel({}); }

}  // namespace

extern const Family kOlmoe;
const Family kOlmoe{"olmoe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
