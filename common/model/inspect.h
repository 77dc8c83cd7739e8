// What `consilium inspect DIR` prints: a model folder in figures. Reads headers only.
#pragma once
#include <string>

#include "absl/status/statusor.h"

namespace consilium {

// Text for people, or one JSON object.
absl::StatusOr<std::string> DescribeModel(const std::string& dir, bool json);

}  // namespace consilium
