// DeepSeek-V3, R1, V3.1 and Kimi K2 (DeepseekV3ForCausalLM): multi-head latent attention, sigmoid gate with
// correction bias and groups (noaux_tc), shared experts, first layers dense. Technical report: arXiv
// 2412.19437.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"deepseek_v3", "kimi_k2"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadMlaModel(c, &spec);
  ReadSigmoidGate(c, &spec);
  ReadDeepseekLayers(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) {
  FileNames names;
  out->BesideVision(&names);
  out->AddModel(names);
}

}  // namespace

extern const Family kDeepseekV3;
const Family kDeepseekV3{"deepseek_v3", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
