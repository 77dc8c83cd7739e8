// Typed reads of a config.json with errors that say key, expected and got. The first error is kept and every
// later read gives its fallback, so that a family reads all its keys in a row and asks for status() once.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

class ConfigReader {
 public:
  // `source` names the text in messages, e.g. its path.
  static absl::StatusOr<ConfigReader> Parse(std::string_view text, std::string_view source);
  ~ConfigReader();
  ConfigReader(const ConfigReader&);
  ConfigReader& operator=(const ConfigReader&);

  // Present and not null.
  bool Has(std::string_view key) const;
  // Present and null, where that differs from absent.
  bool IsNull(std::string_view key) const;
  // An integer in [min, max]. Without `fallback` the key must be there.
  uint32_t U32(std::string_view key, uint32_t min, uint32_t max,
               std::optional<uint32_t> fallback = std::nullopt);
  // A finite number in [min, max].
  double Number(std::string_view key, double min, double max, std::optional<double> fallback = std::nullopt);
  bool Bool(std::string_view key, std::optional<bool> fallback = std::nullopt);
  // The same, or a whole number: all but 0 is true.
  bool Flag(std::string_view key, bool fallback);
  std::string Text(std::string_view key, std::optional<std::string> fallback = std::nullopt);
  // An integer or a list of integers; absent or null: empty.
  std::vector<uint32_t> U32List(std::string_view key, uint32_t max);
  std::vector<std::string> TextList(std::string_view key);
  std::vector<double> NumberList(std::string_view key, double min, double max);
  // The object under `key`, sharing this reader's status; nullopt when absent or null.
  std::optional<ConfigReader> Object(std::string_view key);

  // The value of `key` must be one of these (or absent).
  void ExpectText(std::string_view key, std::initializer_list<std::string_view> allowed);
  // A switch this engine has only one way of: UNIMPLEMENTED when the value differs.
  void ExpectBool(std::string_view key, bool only, std::string_view why);

  // INVALID_ARGUMENT "source: key: message", unless there is an error already.
  void Fail(std::string_view key, std::string_view message);
  void Unsupported(std::string_view key, std::string_view message);
  bool ok() const;
  absl::Status status() const;

  // Keys that nobody asked for so far, with the path of those in objects that were opened; sorted. Null
  // counts as absent.
  std::vector<std::string> Unread() const;

 private:
  struct Shared;
  struct Node;
  ConfigReader(std::shared_ptr<Shared> shared, const Node* node, std::string prefix);
  const Node* Find(std::string_view key) const;
  std::string Where(std::string_view key) const;

  std::shared_ptr<Shared> shared_;  // the tree and the first error, common to all readers of its objects
  const Node* node_;                // a json value, typed in the .cc
  std::string prefix_;
};

}  // namespace consilium
