// A second forward pass that shares nothing with the kernels but the config reader: double precision,
// expanded latent attention, plain loops, whole sequence at once. Slow and obvious; the truth for models
// without a golden file.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace consilium {

// Logits of every position, [tokens * V].
std::vector<double> OracleLogits(const std::string& dir, std::span<const TokenId> tokens);

}  // namespace consilium
