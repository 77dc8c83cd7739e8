// dots.llm1 (Dots1ForCausalLM): DeepSeek-V3's gate over grouped-query attention with norms of queries and
// keys.
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"dots1"};

ModelSpec Read(ConfigReader& c) {
  ModelSpec spec;
  ReadGqaModel(c, &spec);
  ReadNormedHeads(c, &spec);
  const uint32_t window = ReadWindow(c);
  if (!ReadLayerTypes(c, window, &spec)) {
    const uint32_t first = c.U32("max_window_layers", 0, 1 << 20, 62);
    for (uint32_t i = first; i < spec.layers.size(); ++i) spec.layers[i].window = window;
  }
  ReadExperts(c, &spec, {"n_routed_experts"});
  ReadSigmoidGate(c, &spec);
  ReadDeepseekLayers(c, &spec);
  ReadGqaRope(c, &spec);
  return spec;
}

void List(const ModelSpec&, RoleList* out) { out->AddModel({}); }

}  // namespace

extern const Family kDots1;
const Family kDots1{"dots1", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
