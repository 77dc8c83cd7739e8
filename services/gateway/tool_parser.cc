#include "services/gateway/tool_parser.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "services/gateway/stop_scanner.h"

namespace consilium::gateway {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>", kSpace = " \t\r\n";
constexpr size_t kCallDepthMax = 100;  // of arguments: printing them recurses

bool TooDeep(std::string_view text) {
  size_t depth = 0;
  for (const char c : text) {
    if ((c == '[' || c == '{') && ++depth > kCallDepthMax) return true;
    if ((c == ']' || c == '}') && depth > 0) --depth;
  }
  return false;
}

std::optional<ToolCall> ParseCall(std::string_view text) {
  using nlohmann::ordered_json;
  if (TooDeep(text)) return std::nullopt;
  const ordered_json call = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return std::nullopt;
  ToolCall out{call["name"].get<std::string>(), "{}"};
  if (call.contains("arguments")) {
    const ordered_json& arguments = call["arguments"];
    out.arguments = arguments.is_string()
                        ? arguments.get<std::string>()
                        : arguments.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  }
  return out;
}

}  // namespace

void ToolParser::Content(std::string_view text, std::string* content) {
  if (after_call_) {
    const size_t begin = text.find_first_not_of(kSpace);
    if (begin == std::string_view::npos) return;
    text.remove_prefix(begin);
    after_call_ = false;
  }
  content->append(text);
}

void ToolParser::Feed(std::string_view text, std::string* content, std::vector<ToolCall>* calls) {
  buffer_ += text;
  for (;;) {
    if (in_call_) {
      const size_t close = buffer_.find(kClose);
      if (close == std::string::npos) return;
      if (auto call = ParseCall(std::string_view(buffer_).substr(0, close))) {
        calls->push_back(std::move(*call));
        any_call_ = after_call_ = true;
      } else {
        Content(space_, content);
        Content(std::string(kOpen) + buffer_.substr(0, close) + std::string(kClose), content);
      }
      buffer_.erase(0, close + kClose.size());
      in_call_ = false;
    }
    const size_t open = buffer_.find(kOpen);
    const size_t known = open == std::string::npos ? buffer_.size() - PartialMatch(buffer_, kOpen) : open;
    const size_t last = std::string_view(buffer_).substr(0, known).find_last_not_of(kSpace);
    const size_t end = last == std::string::npos ? 0 : last + 1;
    Content(std::string_view(buffer_).substr(0, end), content);
    if (open == std::string::npos) {
      buffer_.erase(0, end);
      return;
    }
    space_ = buffer_.substr(end, open - end);
    buffer_.erase(0, open + kOpen.size());
    in_call_ = true;
  }
}

void ToolParser::Flush(std::string* content, std::vector<ToolCall>* calls) {
  if (in_call_) {
    if (auto call = ParseCall(buffer_)) {
      calls->push_back(std::move(*call));
      any_call_ = true;
    } else {
      Content(space_ + std::string(kOpen) + buffer_, content);
    }
  } else if (!any_call_ || buffer_.find_first_not_of(kSpace) != std::string::npos) {
    Content(buffer_, content);
  }
  buffer_.clear();
  in_call_ = false;
}

}  // namespace consilium::gateway
