#include "services/gateway/stop_scanner.h"

#include <algorithm>

namespace consilium::gateway {

size_t PartialMatch(std::string_view text, std::string_view word) {
  for (size_t n = std::min(text.size(), word.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == word.substr(0, n)) return n;
  }
  return 0;
}

bool StopScanner::Feed(std::string_view text, std::string* out) {
  held_ += text;
  size_t start = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t until = at + stop.size();
    if (until < end || (until == end && at < start)) start = at, end = until;
  }
  if (end != std::string::npos) {
    out->append(held_, 0, include_ ? end : start);
    held_.clear();
    return true;
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) keep = std::max(keep, PartialMatch(held_, stop));
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

void StopScanner::Flush(std::string* out) {
  *out += held_;
  held_.clear();
}

}  // namespace consilium::gateway
