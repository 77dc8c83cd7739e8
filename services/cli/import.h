// `consilium import`: a model's manifest, made ahead of its first start.
#pragma once
#include <string>

namespace consilium {

// Prints what was made or found, and where. 0, or 1 with one line on stderr.
int RunImport(const std::string& model, const std::string& state_dir, bool json);

}  // namespace consilium
