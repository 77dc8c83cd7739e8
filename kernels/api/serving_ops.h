// The kernels a process may serve with.
#pragma once
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/api/kernels.h"

namespace consilium::kernels {

struct ServingOps {
  const Ops* ops = nullptr;
  uint64_t fingerprint =
      0;  // of the numerics class on this machine; equal on all machines that may serve together
};
// By name, or "auto". FAILED_PRECONDITION: this machine's bits in class `c` differ from the reference's.
absl::StatusOr<ServingOps> FindServingOps(std::string_view name, NumericsClass c);

}  // namespace consilium::kernels
