// GLM-4.5, 4.6, 4.7 and Air (Glm4MoeForCausalLM): DeepSeek-V3's gate over grouped-query attention with
// biases, half of each head rotated, norms of queries and keys where the config says so.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"glm4_moe"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  spec.gqa.qkv_bias = c.Bool("attention_bias", false);
  if (c.Bool("use_qk_norm", false)) spec.gqa.qk_norm = QkNorm::kHead;
  ReadExperts(c, &spec, {"n_routed_experts"});
  ReadSigmoidGate(c, &spec);
  ReadDeepseekLayers(c, &spec);
  ReadGqaRope(c, &spec, /*partial=*/true);
  return spec;
}

void List(const ModelSpec&, RoleList* out) { out->AddModel({}); }

}  // namespace

extern const Family kGlm4Moe;
const Family kGlm4Moe{"glm4_moe", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
