// DeepSeek-V2, V2.5 and V2-Lite (DeepseekV2ForCausalLM): as V3, but a softmax gate: the best of all experts,
// or of the groups with the best single expert (arXiv 2405.04434). Weights are never renormalised.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"deepseek_v2"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadMlaModel(c, &spec);
  c.ExpectText("topk_method", {"greedy", "group_limited_greedy"});
  c.ExpectText("scoring_func", {"softmax"});
  c.ExpectBool("norm_topk_prob", false, "the vendor's code and Transformers differ in what it means");
  if (c.Text("topk_method") == "group_limited_greedy") {
    spec.gate.groups = c.U32("n_group", 1, kExpertsMax);
    spec.gate.groups_kept = c.U32("topk_group", 1, kExpertsMax);
    spec.gate.group_max = true;
    CheckGroups(c, spec.gate, 1);
  }
  spec.gate.scale = static_cast<float>(c.Number("routed_scaling_factor", 1e-6, 1e6));
  ReadDeepseekLayers(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) { out->AddModel({}); }

}  // namespace

extern const Family kDeepseekV2;
const Family kDeepseekV2{"deepseek_v2", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
