// Takes <tool_call>{"name": ..., "arguments": ...}</tool_call> out of a text that comes in pieces. White
// space around a call is not content. What is no valid call stays in the content as it was. The result does
// not depend on the pieces.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace consilium::gateway {

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text
};

class ToolParser {
 public:
  void Feed(std::string_view text, std::string* content, std::vector<ToolCall>* calls);
  // The text has ended: an unclosed call counts if its JSON is whole.
  void Flush(std::string* content, std::vector<ToolCall>* calls);

 private:
  void Content(std::string_view text, std::string* content);

  std::string buffer_;
  std::string space_;  // white space before the open tag, given back if that is no call
  bool in_call_ = false;
  bool after_call_ = false;  // drop white space until content comes
  bool any_call_ = false;
};

}  // namespace consilium::gateway
