#include "services/cli/progress.h"

#include <unistd.h>

#include <cstdio>

namespace consilium {

constexpr MonoTime kTerminalUs = 200'000, kPlainUs = 10'000'000;

Progress::Progress(bool shown)
    : shown_(shown), terminal_(isatty(STDERR_FILENO) != 0), last_us_(terminal_ ? 0 : NowUs()) {}

void Progress::Show(const std::string& what, size_t done, size_t all) {
  if (!shown_) return;
  const MonoTime now = NowUs();
  if (now - last_us_ < (terminal_ ? kTerminalUs : kPlainUs)) return;
  last_us_ = now;
  std::string line = what + ": " + std::to_string(done) + " of " + std::to_string(all);
  const size_t width = line.size();
  if (line.size() < width_) line.resize(width_, ' ');
  width_ = width;
  std::fprintf(stderr, terminal_ ? "\r%s" : "%s\n", line.c_str());
}

void Progress::Clear() {
  if (shown_ && terminal_ && width_ > 0) std::fprintf(stderr, "\r%s\r", std::string(width_, ' ').c_str());
  width_ = 0;
}

}  // namespace consilium
