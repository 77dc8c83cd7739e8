// Families that keep a recurrent state beside the KV cache. Prefix cache, preemption and replay know pages of
// keys and values only, so these are refused by name rather than by "unknown family".
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"qwen3_next", "lfm2_moe"};

ModelSpec Read(ConfigReader& c) {
  const std::string type = c.Text("model_type");
  c.Unsupported(
      "model_type",
      "\"" + type + "\" is not supported: its " +
          (type == "lfm2_moe" ? "short convolutions" : "linear-attention layers") +
          " keep a recurrent state beside the KV cache, which prefix cache, preemption and replay do not "
          "carry");
  return {};
}

void List(const ModelSpec&, RoleList*) {}

}  // namespace

extern const Family kRecurrent;
const Family kRecurrent{"recurrent", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
