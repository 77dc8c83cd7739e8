// Families with layers of linear attention. Their state of a sequence (2 MiB a layer in Qwen3-Next) is one
// running value, not a part for each token, so no KV page can hold it: prefix cache, preemption and replay,
// which know pages only, do not carry it. They are refused by name rather than by "unknown family".
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"qwen3_next"};

ModelSpec Read(ConfigReader& c) {
  c.Unsupported(
      "model_type",
      "\"" + c.Text("model_type") +
          "\" is not supported: its linear-attention layers keep a recurrent state that is not made "
          "of one part for each token, so KV pages, and with them prefix cache, preemption and replay, "
          "do not carry it");
  return {};
}

void List(const ModelSpec&, RoleList*) {}

}  // namespace

extern const Family kRecurrent;
const Family kRecurrent{"recurrent", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
