// Private to this folder's .cc files: the one place where JSON text becomes a tree.
#pragma once
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace consilium {

using Json = nlohmann::json;

// INVALID_ARGUMENT names `source`, line and column; NaN, infinities, numbers out of range and doubled keys
// are refused.
absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view source);

}  // namespace consilium
