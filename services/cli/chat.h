// `consilium chat`: talks to a running gateway.
#pragma once
#include <string>

#include "services/cli/api_client.h"

namespace consilium {

struct ChatOptions {
  ApiTarget target;
  ChatSampling sampling;
  std::string system;   // system message; empty: none
  std::string message;  // one question and its answer; empty: one question a line from stdin, with history
};

int RunChat(const ChatOptions& options);

// Model output as a terminal may show it: control characters but newline and tab become '?'.
std::string Printable(std::string_view text);

}  // namespace consilium
