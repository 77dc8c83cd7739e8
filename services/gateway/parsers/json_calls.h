// Calls written as JSON objects {"name": ..., "arguments": {...}}.
#pragma once
#include "services/gateway/parsers/buffered_parser.h"

namespace consilium::gateway {

class JsonCallParser : public CallParser {
 protected:
  using CallParser::CallParser;
  // The object at `at`. With the name first its arguments are streamed; else it is taken as a whole.
  Head ReadObject(std::string_view text, size_t at, bool last);
  // Behind the arguments: the rest of the object, up to and with its brace. nullopt: more text is needed.
  std::optional<size_t> ObjectRest(std::string_view text, bool last) const;

 private:
  bool whole_ = false;
};

// [{...}, {...}] behind a marker.
class JsonListParser : public JsonCallParser {
 public:
  explicit JsonListParser(std::string_view open) : JsonCallParser(open), ends_{open} {}

 protected:
  Head ParseHead(std::string_view text, bool last) override;
  Tail ParseTail(std::string_view text, bool last) override;
  std::span<const std::string_view> ends() const override { return ends_; }
  void Opened() override { in_list_ = false; }

  bool in_list_ = false;  // behind the first call of the list

 private:
  const std::string_view ends_[1];
};

}  // namespace consilium::gateway
