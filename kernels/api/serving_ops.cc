#include "kernels/api/serving_ops.h"

#include <string>

#include "common/base/status.h"

namespace consilium::kernels {

absl::StatusOr<ServingOps> FindServingOps(std::string_view name, NumericsClass c) {
  ASSIGN_OR_RETURN(const Ops* ops, FindOps(name));
  ASSIGN_OR_RETURN(const Ops* ref, FindOps("ref"));
  const uint64_t fingerprint = Fingerprint(*ops, c), expected = Fingerprint(*ref, c);
  if (fingerprint == expected) return ServingOps{ops, fingerprint};
  return FailedPrecondition("kernels \"" + std::string(ops->name) +
                            "\" of this machine have another fingerprint: expected " +
                            std::to_string(expected) + ", got " + std::to_string(fingerprint));
}

}  // namespace consilium::kernels
