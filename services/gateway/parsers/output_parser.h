// What a model writes to an assistant's message: content, reasoning and tool calls, from a text that comes in
// pieces. The concatenation of the deltas does not depend on the pieces.
#pragma once
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace consilium::gateway {

// A call of a tool: begun and whole, or the next piece of the arguments of the last call begun.
struct CallDelta {
  bool begins = true;
  std::string id;         // as the model writes it; "": to be made
  std::string name;       // empty unless `begins`
  std::string arguments;  // JSON text, or a piece of it
};

struct MessageDelta {
  std::string content;
  std::string reasoning;
  std::vector<CallDelta> calls;

  void AddCall(CallDelta call) {
    if (call.begins || calls.empty())
      calls.push_back(std::move(call));
    else
      calls.back().arguments += call.arguments;
  }
};

// What a parser must know of a request.
struct ParserContext {
  bool tools = true;             // false: tools were not offered; calls are not looked for
  bool starts_thinking = false;  // the prompt ends within the reasoning
  // Formats that write values without quotes: parameters (tool, parameter) of type string.
  std::set<std::pair<std::string, std::string>> string_parameters;
};

class OutputParser {
 public:
  virtual ~OutputParser() = default;
  virtual void Feed(std::string_view text, MessageDelta* out) = 0;
  virtual void Flush(MessageDelta* out) = 0;      // the text has ended
  virtual bool in_call() const { return false; }  // the text fed last is, so far, a part of a call
};

}  // namespace consilium::gateway
