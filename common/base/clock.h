// Time as cores see it: handed in with each event, never read.
#pragma once
#include <chrono>
#include <cstdint>
#include <limits>

namespace consilium {

// Microseconds since an arbitrary start; only differences mean anything.
using MonoTime = int64_t;
inline constexpr MonoTime kNever = std::numeric_limits<MonoTime>::max();

inline MonoTime NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace consilium
