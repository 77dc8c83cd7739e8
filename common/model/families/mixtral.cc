// Mixtral (MixtralForCausalLM): grouped-query attention, softmax over all experts, top-k renormalised.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"mixtral"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  const uint32_t window = ReadWindow(c);
  for (LayerSpec& layer : spec.layers) layer.window = window;
  c.ExpectBool("attention_bias", false, "this family has no biases");
  ReadExperts(c, &spec, {"num_local_experts"});
  spec.gate.renormalize = true;
  spec.expert_inter = c.U32("intermediate_size", 1, kHiddenMax);
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  names.gate = "block_sparse_moe.gate.weight";
  names.experts = "block_sparse_moe.experts.";
  names.expert = kW132;
  if (out->Has("model.layers.0.mlp.gate.weight")) {  // as Transformers 5 keeps it in memory
    names.gate = "mlp.gate.weight";
    names.experts = "mlp.experts.";
  }
  out->AddModel(names);
}

}  // namespace

extern const Family kMixtral;
const Family kMixtral{"mixtral", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
