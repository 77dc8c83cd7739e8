#include "common/model/json_text.h"

#include <set>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace consilium {

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view source) {
  // One set of keys per open object, to see a key that comes twice (the library would keep the last
  // silently).
  std::vector<std::set<std::string>> open;
  std::string doubled;
  const auto watch = [&](int /*depth*/, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end && !open.empty()) open.pop_back();
    if (event == Json::parse_event_t::key && !open.empty()) {
      const auto& key = value.get_ref<const std::string&>();
      if (!open.back().insert(key).second && doubled.empty()) doubled = key;
    }
    return true;
  };
  try {
    Json tree = Json::parse(text.begin(), text.end(), watch);
    if (!doubled.empty())
      return InvalidArgument(std::string(source) + ": key \"" + doubled + "\" comes twice");
    return tree;
  } catch (const Json::exception& e) {
    return InvalidArgument(std::string(source) + ": not valid JSON: " + e.what());
  }
}

}  // namespace consilium
