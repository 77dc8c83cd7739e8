#include "common/model/config_reader.h"

#include <cmath>
#include <set>

#include "common/base/status.h"
#include "common/model/json_text.h"

namespace consilium {
namespace {

std::string NumberText(double v) {
  std::string text = Json(v).dump();
  if (text.size() > 2 && text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

// A value as a message shows it, cut to a sane length.
std::string Shown(const Json& v) {
  std::string text = v.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

const Json& AsJson(const void* node) { return *static_cast<const Json*>(node); }

}  // namespace

struct ConfigReader::Shared {
  Json root;
  std::set<std::string> asked;  // paths, "rope_scaling.factor"
  std::string source;
  absl::Status status;
};

ConfigReader::ConfigReader(std::shared_ptr<Shared> shared, const Node* node, std::string prefix)
    : shared_(std::move(shared)), node_(node), prefix_(std::move(prefix)) {}
ConfigReader::~ConfigReader() = default;
ConfigReader::ConfigReader(const ConfigReader&) = default;
ConfigReader& ConfigReader::operator=(const ConfigReader&) = default;

absl::StatusOr<ConfigReader> ConfigReader::Parse(std::string_view text, std::string_view source) {
  auto shared = std::make_shared<Shared>();
  ASSIGN_OR_RETURN(shared->root, ParseJson(text, source));
  shared->source = source;
  if (!shared->root.is_object()) return InvalidArgument(std::string(source) + ": expected a JSON object");
  const Node* node = reinterpret_cast<const Node*>(&shared->root);
  return ConfigReader(std::move(shared), node, "");
}

const ConfigReader::Node* ConfigReader::Find(std::string_view key) const {
  const Json& object = AsJson(node_);
  shared_->asked.insert(prefix_ + std::string(key));
  const auto it = object.find(std::string(key));
  if (it == object.end() || it->is_null()) return nullptr;
  return reinterpret_cast<const Node*>(&*it);
}

std::string ConfigReader::Where(std::string_view key) const {
  return shared_->source + ": " + prefix_ + std::string(key) + ": ";
}

bool ConfigReader::Has(std::string_view key) const { return Find(key) != nullptr; }

bool ConfigReader::IsNull(std::string_view key) const {
  const Json& object = AsJson(node_);
  const auto it = object.find(std::string(key));
  return it != object.end() && it->is_null();
}

std::vector<std::string> ConfigReader::Unread() const {
  std::vector<std::string> out;
  const auto visit = [&](const auto& self, const Json& object, const std::string& prefix) -> void {
    for (const auto& [key, value] : object.items()) {
      const std::string path = prefix + key;
      if (value.is_null()) continue;  // as if absent
      if (!shared_->asked.contains(path)) {
        out.push_back(path);
      } else if (value.is_object()) {
        // An object that was only asked for, never opened, has no path below it.
        const auto below = shared_->asked.lower_bound(path + ".");
        if (below != shared_->asked.end() && below->starts_with(path + ".")) self(self, value, path + ".");
      }
    }
  };
  visit(visit, shared_->root, "");
  return out;
}

uint32_t ConfigReader::U32(std::string_view key, uint32_t min, uint32_t max,
                           std::optional<uint32_t> fallback) {
  const Node* node = Find(key);
  const std::string expected = "expected an integer in " + std::to_string(min) + ".." + std::to_string(max);
  if (node == nullptr) {
    if (!fallback) Fail(key, "missing; " + expected);
    return fallback.value_or(min);
  }
  const Json& v = AsJson(node);
  // Some writers put counts as 8.0: an integral float is the same number.
  if (v.is_number_float()) {
    const double d = v.get<double>();
    if (std::isfinite(d) && d == std::floor(d) && d >= min && d <= max) return static_cast<uint32_t>(d);
  } else if (v.is_number_unsigned()) {
    const uint64_t u = v.get<uint64_t>();
    if (u >= min && u <= max) return static_cast<uint32_t>(u);
  }
  Fail(key, expected + ", got " + Shown(v));
  return min;
}

double ConfigReader::Number(std::string_view key, double min, double max, std::optional<double> fallback) {
  const Node* node = Find(key);
  const std::string expected = "expected a number in " + NumberText(min) + ".." + NumberText(max);
  if (node == nullptr) {
    if (!fallback) Fail(key, "missing; " + expected);
    return fallback.value_or(min);
  }
  const Json& v = AsJson(node);
  if (v.is_number()) {
    const double d = v.get<double>();
    if (std::isfinite(d) && d >= min && d <= max) return d;
  }
  Fail(key, expected + ", got " + Shown(v));
  return min;
}

bool ConfigReader::Bool(std::string_view key, std::optional<bool> fallback) {
  const Node* node = Find(key);
  if (node == nullptr) {
    if (!fallback) Fail(key, "missing; expected true or false");
    return fallback.value_or(false);
  }
  const Json& v = AsJson(node);
  if (v.is_boolean()) return v.get<bool>();
  Fail(key, "expected true or false, got " + Shown(v));
  return false;
}

bool ConfigReader::Flag(std::string_view key, bool fallback) {
  const Node* node = Find(key);
  if (node != nullptr && AsJson(node).is_number_integer()) return AsJson(node) != 0;
  return Bool(key, fallback);
}

std::string ConfigReader::Text(std::string_view key, std::optional<std::string> fallback) {
  const Node* node = Find(key);
  if (node == nullptr) {
    if (!fallback) Fail(key, "missing; expected a string");
    return fallback.value_or("");
  }
  const Json& v = AsJson(node);
  if (v.is_string()) return v.get<std::string>();
  Fail(key, "expected a string, got " + Shown(v));
  return "";
}

std::vector<uint32_t> ConfigReader::U32List(std::string_view key, uint32_t max) {
  std::vector<uint32_t> out;
  const Node* node = Find(key);
  if (node == nullptr) return out;
  const Json& v = AsJson(node);
  const Json list = v.is_array() ? v : Json::array({v});
  for (const Json& item : list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > max) {
      Fail(key, "expected integers in 0.." + std::to_string(max) + ", got " + Shown(item));
      return {};
    }
    out.push_back(item.get<uint32_t>());
  }
  return out;
}

std::vector<std::string> ConfigReader::TextList(std::string_view key) {
  std::vector<std::string> out;
  const Node* node = Find(key);
  if (node == nullptr) return out;
  const Json& v = AsJson(node);
  if (!v.is_array()) Fail(key, "expected a list of strings, got " + Shown(v));
  for (const Json& item : v.is_array() ? v : Json::array()) {
    if (!item.is_string()) {
      Fail(key, "expected strings, got " + Shown(item));
      return {};
    }
    out.push_back(item.get<std::string>());
  }
  return out;
}

std::vector<double> ConfigReader::NumberList(std::string_view key, double min, double max) {
  std::vector<double> out;
  const Node* node = Find(key);
  if (node == nullptr) return out;
  const Json& v = AsJson(node);
  if (!v.is_array()) Fail(key, "expected a list of numbers, got " + Shown(v));
  for (const Json& item : v.is_array() ? v : Json::array()) {
    const double d = item.is_number() ? item.get<double>() : std::nan("");
    if (!(d >= min && d <= max)) {
      Fail(key, "expected numbers in " + NumberText(min) + ".." + NumberText(max) + ", got " + Shown(item));
      return {};
    }
    out.push_back(d);
  }
  return out;
}

std::optional<ConfigReader> ConfigReader::Object(std::string_view key) {
  const Node* node = Find(key);
  if (node == nullptr) return std::nullopt;
  if (!AsJson(node).is_object()) {
    Fail(key, "expected an object, got " + Shown(AsJson(node)));
    return std::nullopt;
  }
  return ConfigReader(shared_, node, prefix_ + std::string(key) + ".");
}

void ConfigReader::ExpectText(std::string_view key, std::initializer_list<std::string_view> allowed) {
  if (!Has(key)) return;
  const std::string value = Text(key);
  std::string list;
  for (std::string_view a : allowed) {
    if (value == a) return;
    list += (list.empty() ? "" : ", ") + std::string(a);
  }
  Unsupported(key, "\"" + value + "\" is not supported; supported: " + list);
}

void ConfigReader::ExpectBool(std::string_view key, bool only, std::string_view why) {
  if (Bool(key, only) != only)
    Unsupported(key, std::string(only ? "false" : "true") + " is not supported: " + std::string(why));
}

void ConfigReader::Fail(std::string_view key, std::string_view message) {
  if (shared_->status.ok()) shared_->status = InvalidArgument(Where(key) + std::string(message));
}
void ConfigReader::Unsupported(std::string_view key, std::string_view message) {
  if (shared_->status.ok()) shared_->status = Unimplemented(Where(key) + std::string(message));
}
bool ConfigReader::ok() const { return shared_->status.ok(); }
absl::Status ConfigReader::status() const { return shared_->status; }

}  // namespace consilium
