#include "common/model/json_text.h"

#include <string>
#include <unordered_set>
#include <vector>

#include "common/base/status.h"

namespace consilium {
namespace {

// Sees a key that comes twice in an object; the library would keep the last silently. A pass of its own: the
// library's parser with a callback looks through all of the parent whenever an object in it ends, which takes
// minutes for the header of a file with 100,000 tensors.
class KeyWatcher : public Json::json_sax_t {
 public:
  const std::string& doubled() const { return doubled_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    open_.emplace_back();
    return true;
  }
  bool end_object() override {
    open_.pop_back();
    return true;
  }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool key(string_t& key) override {
    if (!open_.back().insert(key).second && doubled_.empty()) doubled_ = key;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;  // the parse that follows says it
  }

 private:
  std::vector<std::unordered_set<std::string>> open_;  // keys of each open object
  std::string doubled_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view source) {
  try {
    KeyWatcher keys;
    (void)Json::sax_parse(text.begin(), text.end(), &keys);
    Json tree = Json::parse(text.begin(), text.end());
    if (!keys.doubled().empty())
      return InvalidArgument(std::string(source) + ": key \"" + keys.doubled() + "\" comes twice");
    return tree;
  } catch (const Json::exception& e) {
    return InvalidArgument(std::string(source) + ": not valid JSON: " + e.what());
  }
}

}  // namespace consilium
