// Families with layers of linear attention or state spaces. Their state of a sequence (2 MiB a layer in
// Qwen3-Next) is one running value, not a part for each token, so no KV page can hold it: prefix cache,
// preemption and replay, which know pages only, do not carry it. They are refused by name rather than by
// "unknown family".
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"qwen3_next", "granitemoehybrid", "jamba"};

ModelSpec Read(ConfigReader& c) {
  const std::string type = c.Text("model_type");
  const std::string layers = type == "qwen3_next" ? "linear-attention" : "Mamba";
  c.Unsupported(
      "model_type",
      "\"" + type + "\" is not supported: its " + layers +
          " layers keep a recurrent state that is not made "
          "of one part for each token, so KV pages, and with them prefix cache, preemption and replay, "
          "do not carry it");
  return {};
}

void List(const ModelSpec&, RoleList*) {}

}  // namespace

extern const Family kRecurrent;
const Family kRecurrent{"recurrent", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
