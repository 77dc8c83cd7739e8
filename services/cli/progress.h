// Progress of a long command on stderr: one line that is rewritten on a terminal, else a line every ten
// seconds.
#pragma once
#include <cstddef>
#include <string>

#include "common/base/clock.h"

namespace consilium {

class Progress {
 public:
  explicit Progress(bool shown);
  ~Progress() { Clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // "loading experts: 3 of 160". Call as often as you like.
  void Show(const std::string& what, size_t done, size_t all);
  void Clear();  // removes the line from a terminal

 private:
  const bool shown_;
  const bool terminal_;
  size_t width_ = 0;  // of the line on the terminal
  MonoTime last_us_;
};

}  // namespace consilium
