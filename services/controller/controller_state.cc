#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/base/status.h"
#include "services/controller/controller_service.h"

namespace consilium {
namespace {

std::string File(const std::string& dir) { return dir + "/controller.state"; }

absl::Status Failed(const std::string& what, const std::string& path) {
  return InvalidArgument("--state-dir: cannot " + what + " " + path + ": " + std::strerror(errno));
}

}  // namespace

absl::StatusOr<ControllerState> ReadControllerState(const std::string& dir) {
  ControllerState state;
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return InvalidArgument("--state-dir: cannot make " + dir + ": " + error.message());
  if (!std::filesystem::exists(File(dir))) return state;
  std::ifstream in(File(dir));
  if (!in) return Failed("read", File(dir));
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string_view text = line;
    if (number == 1 && text.starts_with("term ")) {
      const auto [end, failed] = std::from_chars(text.data() + 5, text.data() + text.size(), state.term);
      if (failed == std::errc() && end == text.data() + text.size()) continue;
    } else if (number > 1 && text.starts_with("member ")) {
      state.members.emplace_back(text.substr(7));
      continue;
    }
    return InvalidArgument(File(dir) + " line " + std::to_string(number) + ": " +
                           (number == 1 ? "'term NUMBER'" : "'member ROLE NAME'") + " expected, got '" +
                           line.substr(0, 80) + "'");
  }
  return state;
}

absl::Status WriteControllerState(const std::string& dir, const ControllerState& state) {
  std::string text = "term " + std::to_string(state.term) + "\n";
  for (const std::string& member : state.members) {
    if (member.find('\n') == std::string::npos) text += "member " + member + "\n";
  }
  const std::string beside = File(dir) + ".new";
  const int fd = open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return Failed("write", beside);
  bool ok = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  ok = close(fd) == 0 && ok;
  if (!ok || rename(beside.c_str(), File(dir).c_str()) != 0) return Failed("write", File(dir));
  const int folder = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);  // the rename itself
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
  return absl::OkStatus();
}

}  // namespace consilium
