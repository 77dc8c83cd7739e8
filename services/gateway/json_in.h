// Reading a request body: JSON that cannot hurt, and typed fields with OpenAI's error texts. Included by .cc
// files only.
#pragma once
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "services/gateway/api.h"

namespace consilium::gateway {

using Json = nlohmann::ordered_json;  // the template sees tools in the caller's order

inline ApiError BadRequest(std::string message, std::string param = "", std::string code = "") {
  ApiError error;
  error.message = std::move(message);
  error.param = std::move(param);
  error.code = std::move(code);
  return error;
}

// The body as a JSON object, or the error to answer. Depth is bounded before parsing, since printing
// recurses.
std::optional<ApiError> ParseBody(const std::string& body, Json* out);

// Reads fields of one object. The first problem is kept in `error`; later reads give defaults. A field that
// is null counts as absent.
class Fields {
 public:
  Fields(const Json& object, std::optional<ApiError>* error) : object_(object), error_(error) {}

  const Json* Get(const std::string& name) {
    used_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool Bool(const std::string& name, bool fallback) {
    const Json* v = Get(name);
    if (v == nullptr) return fallback;
    if (!v->is_boolean()) return Wrong(name, *v, "a boolean"), fallback;
    return v->get<bool>();
  }
  std::optional<std::string> String(const std::string& name) {
    const Json* v = Get(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_string()) return Wrong(name, *v, "a string"), std::nullopt;
    return v->get<std::string>();
  }
  std::optional<double> Number(const std::string& name, double min, double max) {
    const Json* v = Get(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_number()) return Wrong(name, *v, "a number"), std::nullopt;
    const double x = v->get<double>();
    if (!(x >= min && x <= max)) return OutOfRange(name, v->dump(), Text(min), Text(max)), std::nullopt;
    return x;
  }
  std::optional<int64_t> Int(const std::string& name, int64_t min, int64_t max) {
    const Json* v = Get(name);
    if (v == nullptr) return std::nullopt;
    const std::optional<int64_t> x = AsInt(*v);
    if (!v->is_number() || (!x && v->is_number_float() && std::floor(v->get<double>()) != v->get<double>()))
      return Wrong(name, *v, "an integer"), std::nullopt;
    if (!x || *x < min || *x > max)
      return OutOfRange(name, v->dump(), std::to_string(min), std::to_string(max)), std::nullopt;
    return x;
  }
  // An integer, also written as 3.0; nullopt: not one, or beyond int64.
  static std::optional<int64_t> AsInt(const Json& v) {
    if (v.is_number_unsigned()) {
      const auto x = v.get<uint64_t>();
      return x > static_cast<uint64_t>(INT64_MAX) ? std::nullopt : std::optional(static_cast<int64_t>(x));
    }
    if (v.is_number_integer()) return v.get<int64_t>();
    if (!v.is_number_float()) return std::nullopt;
    const double x = v.get<double>();
    return std::floor(x) == x && std::fabs(x) < 9e15 ? std::optional(static_cast<int64_t>(x)) : std::nullopt;
  }

  void Fail(ApiError error) {
    if (!error_->has_value()) *error_ = std::move(error);
  }
  void Wrong(const std::string& name, const Json& got, std::string_view expected) {
    Fail(BadRequest("Invalid type for '" + name + "': expected " + std::string(expected) + ", but got " +
                        (got.is_number()    ? "a number"
                         : got.is_string()  ? "a string"
                         : got.is_boolean() ? "a boolean"
                         : got.is_array()   ? "an array"
                         : got.is_object()  ? "an object"
                                            : "null") +
                        " instead.",
                    name, "invalid_type"));
  }
  void OutOfRange(const std::string& name, const std::string& got, const std::string& min,
                  const std::string& max) {
    Fail(BadRequest("Invalid value for '" + name + "': expected a value from " + min + " to " + max +
                        ", but got " + got.substr(0, 40) + " instead.",
                    name, "invalid_value"));
  }
  bool ok() const { return !error_->has_value(); }
  std::vector<std::string> Unused() const {
    std::vector<std::string> out;
    for (const auto& [name, value] : object_.items()) {
      if (!used_.contains(name)) out.push_back(name);
    }
    return out;
  }

 private:
  static std::string Text(double x) {
    std::string s = std::to_string(x);
    s.erase(s.find_last_not_of('0') + 1);
    if (s.back() == '.') s.pop_back();
    return s;
  }
  const Json& object_;
  std::optional<ApiError>* error_;
  std::set<std::string> used_;
};

}  // namespace consilium::gateway
