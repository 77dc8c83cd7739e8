#include "services/cli/chat.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "common/base/status.h"

namespace consilium {
namespace {

absl::Status Turn(ApiClient* api, const ChatOptions& options, std::vector<ChatMessage>* history) {
  ASSIGN_OR_RETURN(const std::string answer, api->Chat(*history, options.sampling, [](std::string_view part) {
    const std::string text = Printable(part);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }));
  std::fputs("\n", stdout);
  std::fflush(stdout);
  history->push_back({"assistant", answer});
  return absl::OkStatus();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "consilium chat: %s\n", Message(status).c_str());
  return 1;
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) c = '?';
  }
  return out;
}

int RunChat(const ChatOptions& options) {
  auto api = ApiClient::Open(options.target);
  if (!api.ok()) return Fail(api.status());
  std::vector<ChatMessage> history;
  if (!options.system.empty()) history.push_back({"system", options.system});
  if (!options.message.empty()) {
    history.push_back({"user", options.message});
    const absl::Status status = Turn(api->get(), options, &history);
    return status.ok() ? 0 : Fail(status);
  }
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) std::fprintf(stderr, "model %s; an empty line or Ctrl-D ends\n", (*api)->model().c_str());
  int code = 0;
  for (std::string line;;) {
    if (terminal) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line) || (terminal && line.empty())) break;
    if (line.empty()) continue;
    history.push_back({"user", line});
    if (const absl::Status status = Turn(api->get(), options, &history); !status.ok()) {
      code = Fail(status);
      history.pop_back();  // the question may be asked again
      if (!terminal) break;
    }
  }
  return code;
}

}  // namespace consilium
