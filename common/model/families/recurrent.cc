// Families with Mamba layers. Such a layer keeps a state of fixed size, which worker and backend would carry
// (services/attention/state_store.h); its arithmetic is not written. They are refused by name rather than by
// "unknown family".
#include "common/model/families/reads.h"

namespace consilium {
namespace {

constexpr std::string_view kTypes[] = {"granitemoehybrid", "jamba"};

ModelSpec Read(ConfigReader& c) {
  c.Unsupported("model_type",
                "\"" + c.Text("model_type") + "\" is not supported: its Mamba layers are not implemented");
  return {};
}

void List(const ModelSpec&, RoleList*) {}

}  // namespace

extern const Family kRecurrent;
const Family kRecurrent{"recurrent", kTypes, Read, List, UsuallyIgnored};

}  // namespace consilium
